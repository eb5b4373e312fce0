"""The state of a run without its weights, and the outcome of an attempt at it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainyard.errors import UserError


@dataclass
class TrainState:
    """Everything that the rest of a run depends on, except weights and optimizer.

    It holds no random state: each micro-batch's seed is a function of (seed, epoch, step, micro-batch).
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    score: float | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    best_step: int | None = None
    best_score: float | None = None
    best_evaluation: dict[str, Any] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    row_order: str | None = None
    """Hash of the order of rows in the first epoch; the first version stored none."""
    workers: list[str] = field(default_factory=list)
    """Kinds of processors and GPUs of the workers."""
    loss_scale: float | None = None
    """Scale of the loss after `step`, in fp16."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    def add_loss(self, loss: float) -> None:
        """Count one step's loss into the mean of the next logged line."""
        self.loss_sum += loss
        self.loss_count += 1

    def add_loss_scale(self, scale: float) -> None:
        """Count one fp16 step: its gradients overflowed, and it was skipped, if the scale fell."""
        skipped = self.loss_scale is not None and scale < self.loss_scale
        self.loss_scale = scale
        self.skipped_steps += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def take_mean_loss(self) -> float:
        """Return the mean loss of the steps since the last call."""
        mean = self.loss_sum / self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return mean

    def add_evaluation(
        self, score: float, evaluation: dict[str, Any], *, higher_is_better: bool = True
    ) -> None:
        """Note an evaluation after `step`; of equal scores the first is the best."""
        self.score, self.evaluation = score, evaluation
        best = self.best_score
        if best is None or (score > best if higher_is_better else score < best):
            self.best_step, self.best_score, self.best_evaluation = self.step, score, evaluation
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1

    @property
    def is_best(self) -> bool:
        """Return whether the last evaluation was made at this step and is the best so far."""
        return self.best_step is not None and self.best_step == self.step

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of an attempt: done, saved and stopped by request, or failed with `error`."""

    status: Literal["finished", "stopped", "failed"]
    error: UserError | None = None
    state: TrainState = field(default_factory=TrainState)
    notes: list[str] = field(default_factory=list)
    """Sentences for people: damaged checkpoints that were passed over, other machines."""
    padding_note: str | None = None
    """Note on the padding that the model needs; None: padding on the right, as usual."""
    train_samples_per_second: float | None = None
    padding_efficiency: float = 0.0
    peak_flops: float | None = None
    """Peak of matrix products of a worker's device, in FLOP/s."""
    mfu: float | None = None
    """Model FLOPs utilization: FLOPs that training on the text needs, over what all devices can compute."""


def failed(error: UserError) -> Outcome:
    return Outcome(status="failed", error=error)
