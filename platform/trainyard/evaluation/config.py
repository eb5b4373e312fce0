"""Flags of `trainyard eval` and `trainyard engine`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainyard.config import (
    DataFlags,
    FileFlags,
    Precision,
    RunFlags,
    ScoringFlags,
    WorkerFlags,
    added,
    check_precision,
    flag,
)
from trainyard.errors import UserError

BUILT_IN_SLICES = ("length", "label")
DEFAULT_LENGTH = 128
"""Maximum tokens per row, if neither the flag nor the model sets a number."""
TWO_SOURCES = (
    "--validation-file is evaluated alone; drop --task, --data-dir and --splits, or drop it"
)


@dataclass(frozen=True, kw_only=True)
class EvaluatedRows(FileFlags):
    """Flags of a model and of the labeled rows that it is evaluated on."""

    model_name_or_path: str
    """Fine-tuned classifier: a run, its model/ folder, a Hub id, or package:NAME/FOLDER."""
    task: str | None = None
    """GLUE task or `demo`. Default: the task that the model was fine-tuned on."""
    data_dir: str | None = None
    """Folder with <task>/<split>.parquet in the Hub's schema. Default: the data set on the Hub."""
    validation_file: str | None = None
    """Own data instead of a task, labeled as in training: .csv, .tsv, .json, .jsonl or .parquet; a
    pattern such as 'more-*.csv', or several of them separated by commas."""
    text_column: str | None = None
    """Own data: column of the text. Default: the one that the model's run was trained on, if the file has
    it, else text."""
    text_pair_column: str | None = None
    """Own data: column of the second text of a pair. Default: the one that the model's run was trained
    on."""
    label_column: str = "label"
    """Own data: column of the label. A file without a column of this name is read by the one that the
    model's run was trained on."""
    label_mapping: Mapping[str, str] | None = added(None, before=None)
    """Map labels of the rows to labels of the model, as in --label-mapping 0 NEGATIVE 1 POSITIVE.
    Default: equal names, or numbers for LABEL_0, LABEL_1 and so on."""
    seed: int = 42
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_file and (self.task or self.data_dir):
            raise UserError(TWO_SOURCES)
        for name in ("text_column", "text_pair_column", "label_column", "delimiter", "encoding"):
            if not self.validation_file and getattr(self, name) != getattr(DataFlags, name):
                raise UserError(
                    f"{flag(name)} describes your own data, but there is no --validation-file; add it"
                )

    def data_name(self, task: str) -> str:
        """Return the display name of the rows: stem of the validation file, or `task`."""
        return Path(self.validation_file).stem if self.validation_file else task

    def data(self, task: str) -> DataFlags:
        return DataFlags(task=task, data_dir=self.data_dir)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunFlags, WorkerFlags, EvaluatedRows):
    """Evaluate a fine-tuned model on a task's splits or on your own file.

    Every row is scored once, at any number of workers. The report shows the model's errors, an
    interval for each figure, and with --against the comparison with another model.
    """

    splits: tuple[str, ...] = ()
    """Splits with labels. Default: the task's evaluation splits."""
    against: str | None = None
    """Second model, compared with the first row by row."""
    slice_columns: tuple[str, ...] = ()
    """Further columns of the file to group rows by, in addition to length and label."""
    group_column: str | None = added(None, before=None)
    """Column of the file whose equal values mark rows that depend on each other, such as questions on
    one paragraph. Intervals and the comparison then draw whole groups."""
    calibrate: bool = False
    """Store the fitted temperature in the model's folder (calibration.json); predictions then use it."""
    num_errors: int = 50
    """Number of worst errors listed with their text."""
    label_thresholds: Literal["0.5", "fitted"] = added("fitted", before="fitted")
    """Multi-label: `fitted` uses the thresholds stored with the model, if any; 0.5 ignores them."""
    metrics: tuple[str, ...] = added((), before=())
    """Further metrics by name, such as roc_auc, log_loss or balanced_accuracy."""

    max_length: int | None = None
    """Maximum tokens per row. Default: the value of the model's training, else up to 128."""
    per_device_eval_batch_size: int = 64
    """Rows per forward pass."""
    mixed_precision: Precision = "no"
    """Precision of the forward pass; fp16 needs a GPU."""

    run_name: str | None = None
    """Folder of this evaluation. Default: eval, task and a hash of the flags."""
    num_workers: int = 1
    """Worker processes that share the rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_precision(self.mixed_precision, use_gpu=self.use_gpu)
        for column in self.slice_columns:
            if column in BUILT_IN_SLICES:
                raise UserError(
                    f"--slice-columns {column}: rows are grouped by {' and '.join(BUILT_IN_SLICES)} "
                    "already; leave it out, or rename the column if it is another one"
                )
        if self.validation_file and self.splits:
            raise UserError(TWO_SOURCES)
        if len(set(self.splits)) < len(self.splits):
            raise UserError(f"--splits is {' '.join(self.splits)}; name each once")
        if self.calibrate and "train" in self.splits:
            raise UserError(
                "--calibrate with --splits train: a model is more confident on the rows that it "
                "was trained on; calibrate on validation"
            )

    def scoring(self, model: str, max_length: int) -> ScoringFlags:
        """Build the flags of one model's forward passes, with at most `max_length` tokens per row."""
        return ScoringFlags(
            model_name_or_path=model,
            max_length=max_length,
            per_device_eval_batch_size=self.per_device_eval_batch_size,
            mixed_precision=self.mixed_precision,
        )

    def resolved_run_name(self, task: str) -> str:
        return self.name_after(f"eval-{task}")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(EvaluatedRows):
    """Choose the engine that runs a fine-tuned classifier best on this machine; store it with the model.

    torch, torch.compile and OpenVINO (float32, bfloat16, int8) predict the same labeled rows, in turns.
    Models that are served with `engine: auto` (the default) use the stored engine.
    """

    num_rows: int = 1000
    """Rows that are scored, from the split's start; the next 300 calibrate int8."""
    max_loss: float = 0.0
    """Maximum drop of the score compared with torch. 0: only engines whose outputs differ from torch's
    by at most 1e-4 of the largest output."""
    threads: int | None = None
    """Cores of a forward pass. Default: all. Use the number that the model is served with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_loss < 1:
            raise UserError(f"--max-loss is {self.max_loss:g}; it must be from 0 to below 1")
