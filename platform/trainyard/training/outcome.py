"""State of a run apart from its tensors, and the outcome of an attempt at the run."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainyard.errors import UserError

STATE_FILE = "state.json"
"""File of a checkpoint that holds the state, under "train"."""


@dataclass
class TrainState:
    """State that a run resumes from, next to weights, optimizer, scheduler and gradient scaler.

    There is no random state: each micro-batch's seed is a function of (seed, epoch, step,
    micro-batch).
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    score: float | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    best_step: int | None = None
    best_score: float | None = None
    best_evaluation: dict[str, Any] = field(default_factory=dict)
    evaluations: int = 0
    """Number of evaluations so far; those before a checkpoint of an older version are not counted."""
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    row_order: str | None = None
    """Hash of the order of rows in the first epoch; None in older checkpoints."""
    workers: list[str] = field(default_factory=list)
    """Sorted kinds of the workers' processors and GPUs."""
    loss_scale: float | None = None
    """Loss scale after `step`; None without fp16."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    def add_loss(self, loss: float) -> None:
        """Add one step's loss to the mean that `take_mean_loss` returns next."""
        self.loss_sum += loss
        self.loss_count += 1

    def add_loss_scale(self, scale: float) -> None:
        """Record the loss scale after one fp16 step.

        A smaller scale than before counts as a skipped step, whose gradients overflowed.
        """
        skipped = self.loss_scale is not None and scale < self.loss_scale
        self.loss_scale = scale
        self.skipped_steps += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def take_mean_loss(self) -> float:
        """Return the mean loss of the steps since the last call; at least one is required."""
        mean = self.loss_sum / self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return mean

    def add_evaluation(
        self, score: float, evaluation: dict[str, Any], *, higher_is_better: bool = True
    ) -> None:
        """Record an evaluation after `step`. Among equal scores, the earliest is the best."""
        self.score, self.evaluation = score, evaluation
        self.evaluations += 1
        best = self.best_score
        if best is None or (score > best if higher_is_better else score < best):
            self.best_step, self.best_score, self.best_evaluation = self.step, score, evaluation
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1

    @property
    def eval_loss(self) -> float | None:
        """Mean loss over the splits of the last evaluation; None before the first evaluation.

        It is also None after an evaluation by an older version, which recorded no loss.
        """
        losses = [split.get("eval_loss") for split in self.evaluation.values()]
        known = [loss for loss in losses if loss is not None]
        return sum(known) / len(known) if known else None

    @property
    def is_best(self) -> bool:
        """True if the best evaluation so far was made at the current step."""
        return self.best_step is not None and self.best_step == self.step

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of an attempt at a run.

    `status` is "finished", "stopped" (saved after a stop request) or "failed" (with `error`).
    """

    status: Literal["finished", "stopped", "failed"]
    error: UserError | None = None
    by_callback: bool = False
    """True if a user's callback stopped the run."""
    state: TrainState = field(default_factory=TrainState)
    notes: list[str] = field(default_factory=list)
    """Sentences to print, about skipped damaged checkpoints and changed machines."""
    padding_note: str | None = None
    """Sentence on the padding that the model needs; None for padding on the right."""
    train_samples_per_second: float | None = None
    padding_efficiency: float = 0.0
    peak_flops: float | None = None
    """Peak rate of matrix products on one worker's device, in FLOP/s."""
    mfu: float | None = None
    """Model FLOPs utilization (Chowdhery et al. 2022), as a share of the devices' total peak.

    Computation on padding does not count as utilization.
    """


def failed(error: UserError) -> Outcome:
    return Outcome(status="failed", error=error)
