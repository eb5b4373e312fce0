"""Flags of `trainyard data-doctor`."""

from dataclasses import dataclass

from trainyard.errors import UserError
from trainyard.flags import DEFAULT_MODEL, ClusterFlags, DataFlags, ModelFlags, RunFlags
from trainyard.tasks import check_data_dir, get_task


@dataclass(frozen=True, kw_only=True)
class DataDoctorConfig(RunFlags, ClusterFlags, ModelFlags, DataFlags):
    """Examine a data set for faults.

    It reports leaks between splits, duplicates, contradicting and suspicious labels, empty and
    truncated rows, imbalance and drift. The data flags are the same as in `trainyard train`.
    """

    model_name_or_path: str = DEFAULT_MODEL
    """Model whose tokenizer counts the truncated tokens."""
    max_length: int = 128
    """Maximum tokens per row in training."""
    near_duplicate_similarity: float = 0.8
    """Minimum Jaccard similarity of the words of two near duplicates."""
    num_examples: int = 50
    """Maximum rows listed for each kind of finding."""
    seed: int = 42
    """Seed of the cross-validation folds and of the held-out rows."""

    run_name: str | None = None
    """Folder of the report. Default: doctor, task and a hash of the flags."""
    address: str | None = None
    """Ray cluster to tokenize on. Default: RAY_ADDRESS, or a local Ray for this job."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 <= self.near_duplicate_similarity <= 1:
            raise UserError(
                f"--near-duplicate-similarity is {self.near_duplicate_similarity}; it must lie "
                "between 0.5 and 1 (typically 0.8)"
            )
        check_data_dir(get_task(self.task), self.data_dir)

    @property
    def resolved_run_name(self) -> str:
        return self.name_after(f"doctor-{self.source}")
