"""The flags of `jobs/eval.py` and `jobs/engine.py`."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

from trainyard.config import DataConfig, TrainConfig
from trainyard.errors import UserError

PLACE_FIELDS = (
    "storage_path", "run_name", "num_workers", "use_gpu", "resources_per_worker", "address",
    "verbose",
)  # fmt: skip
"""Where and how a model is evaluated; none of these changes what is found."""


BUILT_IN_SLICES = ("length", "label")
DEFAULT_LENGTH = 128
"""Tokens per row, where neither the flag nor the model says how many."""


@dataclass(frozen=True, kw_only=True)
class JudgedRows:
    """A model, and the labeled rows that it answers."""

    model_name_or_path: str
    """Fine-tuned classifier: a run's model/ folder, a Hub id, or package:NAME/FOLDER."""
    task: str | None = None
    """GLUE task or `demo`. Default: the one the model says it was fine-tuned on."""
    data_dir: str | None = None
    """Folder with <task>/<split>.parquet in the Hub's schema; without it the Hub is asked."""
    validation_file: str | None = None
    """Own data instead of a task: .csv, .tsv, .jsonl or .parquet, labeled as in training."""
    text_column: str | None = None
    """Own data: column of the text. Default: text."""
    text_pair_column: str | None = None
    """Own data: column of the second text of a pair."""
    label_column: str = "label"
    """Own data: column of the label."""
    seed: int = 42
    """Decides the bootstrap's draws."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(JudgedRows):
    """Judge a fine-tuned model on a task's splits or on your own file.

    Every row is scored once, at any number of workers. The report says where the model fails, how
    sure each figure is, and with --against whether it is better than another one.
    """

    splits: tuple[str, ...] = ()
    """Splits with labels. Default: the task's evaluation splits."""
    against: str | None = None
    """A second model, compared row by row: is the first one better?"""
    slice_columns: tuple[str, ...] = ()
    """Further columns of the file to group rows by, besides length and label."""
    calibrate: bool = False
    """Store the fitted temperature in the model's folder (calibration.json), for predictions to use."""
    num_errors: int = 50
    """Worst errors that are listed with their text."""

    max_length: int | None = None
    """Tokens per row. Default: as the model was trained, else 128."""
    per_device_eval_batch_size: int = 64
    """Rows per forward pass."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the forward pass; fp16 needs a GPU."""

    storage_path: str = "runs"
    """Folder of all runs; on a cluster one that every node sees."""
    run_name: str | None = None
    """Folder of this evaluation. Default: eval, task and a hash of the flags."""
    num_workers: int = 1
    """Processes that share the rows."""
    use_gpu: bool = False
    """One GPU for each worker."""
    resources_per_worker: dict[str, float] | None = None
    """Ray resources of a worker. Default: an equal share of the CPUs."""
    address: str | None = None
    """Ray cluster to use. Default: RAY_ADDRESS, else a local Ray of its own."""
    verbose: bool = False
    """Show Ray's own logs."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work together, before anything is loaded."""
        if self.num_workers < 1:
            raise UserError(f"--num-workers is {self.num_workers}; it must be at least 1")
        if self.num_errors < 0:
            raise UserError(f"--num-errors is {self.num_errors}; it must not be negative")
        for column in self.slice_columns:
            if column in BUILT_IN_SLICES:
                raise UserError(
                    f"--slice-columns {column}: rows are grouped by {' and '.join(BUILT_IN_SLICES)} "
                    "already; leave it out, or rename the column if it is another one"
                )
        self._check_data()
        self.settings("demo", DEFAULT_LENGTH if self.max_length is None else self.max_length)

    def _check_data(self) -> None:
        if self.validation_file and (self.task or self.data_dir or self.splits):
            raise UserError(
                "--validation-file is judged by itself; drop --task, --data-dir and --splits, or "
                "drop it"
            )
        for name in ("text_column", "text_pair_column", "label_column"):
            if not self.validation_file and getattr(self, name) != getattr(DataConfig, name):
                raise UserError(
                    f"--{name.replace('_', '-')} describes your own data, but there is no "
                    "--validation-file; add it"
                )
        if len(set(self.splits)) < len(self.splits):
            raise UserError(f"--splits is {' '.join(self.splits)}; name each once")
        if self.calibrate and "train" in self.splits:
            raise UserError(
                "--calibrate with --splits train: a model is surer of rows it was trained on than of "
                "others; calibrate on validation"
            )

    def settings(self, task: str, max_length: int, model: str | None = None) -> TrainConfig:
        """What tokenization, the workers and exact prediction go by, in training as here."""
        return TrainConfig(
            task=task,
            data_dir=self.data_dir,
            model_name_or_path=model or self.model_name_or_path,
            max_length=max_length,
            per_device_eval_batch_size=self.per_device_eval_batch_size,
            mixed_precision=self.mixed_precision,
            seed=self.seed,
            storage_path=self.storage_path,
            run_name=self.run_name,
            num_workers=self.num_workers,
            train_batch_size=self.num_workers,  # nothing is trained; it only has to share out
            per_device_train_batch_size=1,
            use_gpu=self.use_gpu,
            resources_per_worker=self.resources_per_worker,
            address=self.address,
            verbose=self.verbose,
        )

    def resolved_run_name(self, task: str) -> str:
        """`run_name`, or task and hash of all that decides what is found."""
        fields = {k: v for k, v in asdict(self).items() if k not in PLACE_FIELDS}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        return self.run_name or f"eval-{task}-{digest[:10]}"


@dataclass(frozen=True, kw_only=True)
class EngineConfig(JudgedRows):
    """Find out which engine runs a fine-tuned classifier best on this machine, and store it with the model.

    torch, torch.compile and OpenVINO (float32, bfloat16, int8) answer the same labeled rows, in turns.
    Models that are served with `engine: auto` (the default) go by what is stored.
    """

    num_rows: int = 1000
    """Rows that are judged, from the split's start; the 300 after them set the scales of int8."""
    max_loss: float = 0.0
    """How much lower than torch's the score may be. 0: only engines with torch's own answers."""
    threads: int | None = None
    """Cores of a forward pass. Default: all; use as many as the model is served with."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work together, before anything is loaded."""
        for name in ("num_rows", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if not 0 <= self.max_loss < 1:
            raise UserError(f"--max-loss is {self.max_loss:g}; it must be from 0 to below 1")
        self.evaluation()

    def evaluation(self) -> EvalConfig:
        """The same rows, as `jobs/eval.py` finds them."""
        names = [field.name for field in fields(JudgedRows)]
        return EvalConfig(**{name: getattr(self, name) for name in names})
