"""The flags of `jobs/doctor_data.py`."""

import hashlib
import json
from dataclasses import asdict, dataclass

from trainyard.config import DEFAULT_MODEL, DataConfig, TrainConfig
from trainyard.errors import UserError
from trainyard.tasks import check_data_dir, get_task

PLACE_FIELDS = ("storage_path", "run_name", "address", "verbose")


@dataclass(frozen=True, kw_only=True)
class DataDoctorConfig(DataConfig):
    """Look for what spoils a data set: leaks between splits, duplicates, contradicting and
    suspicious labels, empty and truncated rows, imbalance and drift.

    The data flags are those of `jobs/train.py`.
    """  # noqa: D205

    model_name_or_path: str = DEFAULT_MODEL
    """Model whose tokenizer says what is cut off."""
    max_length: int = 128
    """Tokens per row that training would keep."""
    near_duplicate_similarity: float = 0.8
    """Two rows are near duplicates when they share this part of their words (Jaccard)."""
    num_examples: int = 50
    """Rows that are listed of each kind of finding."""
    seed: int = 42
    """Decides the folds of the cross-validated model, and the rows held out."""

    storage_path: str = "runs"
    """Folder of all runs."""
    run_name: str | None = None
    """Folder of this examination. Default: doctor, task and a hash of the flags."""
    address: str | None = None
    """Ray cluster to tokenize on. Default: RAY_ADDRESS, else a local Ray of its own."""
    verbose: bool = False
    """Show Ray's own logs."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything is read."""
        if not 0.5 <= self.near_duplicate_similarity <= 1:
            raise UserError(
                f"--near-duplicate-similarity is {self.near_duplicate_similarity}; it must lie "
                "between 0.5 and 1 (0.8 is usual)"
            )
        if self.num_examples < 0:
            raise UserError(f"--num-examples is {self.num_examples}; it must not be negative")
        self.settings()
        check_data_dir(get_task(self.task), self.data_dir)

    def settings(self) -> TrainConfig:
        """The training config whose data this is."""
        return TrainConfig(
            task=self.task,
            data_dir=self.data_dir,
            train_file=self.train_file,
            validation_file=self.validation_file,
            text_column=self.text_column,
            text_pair_column=self.text_pair_column,
            label_column=self.label_column,
            problem_type=self.problem_type,
            model_name_or_path=self.model_name_or_path,
            max_length=self.max_length,
            seed=self.seed,
            storage_path=self.storage_path,
            run_name=self.run_name,
            address=self.address,
            verbose=self.verbose,
        )

    @property
    def resolved_run_name(self) -> str:
        """`run_name`, or task and hash of all that decides what is found."""
        fields = {k: v for k, v in asdict(self).items() if k not in PLACE_FIELDS}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        return self.run_name or f"doctor-{'own' if self.train_file else self.task}-{digest[:10]}"
