"""Where a run is, beside its weights; and how both become a checkpoint and come back."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.storage import CheckpointStore, write_json
from trainyard.training.worker.strategies import OPTIMIZER_FILE, STRATEGIES

STATE_FILE = "state.json"
KEPT_CHECKPOINTS = 2
"""The newest ones that are kept beside the best: the second stands in when the first is damaged."""


@dataclass
class TrainState:
    """All that the rest of a run depends on, besides weights and optimizer.

    There is no random state in it: each slot's seed is a function of (seed, epoch, step, slot).
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

    def add_loss(self, loss: float) -> None:
        """Count one step's loss into the mean that the next logged line shows."""
        self.loss_sum += loss
        self.loss_count += 1

    def take_mean_loss(self) -> float:
        """Mean loss of the steps since it was last taken."""
        mean = self.loss_sum / self.loss_count
        self.loss_sum, self.loss_count = 0.0, 0
        return mean

    def add_evaluation(self, score: float, evaluation: dict[str, Any]) -> None:
        """Note an evaluation after `step`; of equal scores the first is the best."""
        self.score, self.evaluation = score, evaluation
        if self.best_score is None or score > self.best_score:
            self.best_step, self.best_score, self.best_evaluation = self.step, score, evaluation
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def save_checkpoint(
    config: TrainConfig,
    accelerator: Any,
    store: CheckpointStore,
    model: Any,
    optimizer: Any,
    scheduler: Any,
    state: TrainState,
) -> str | None:
    """Commit a checkpoint, every process taking part; returns why not, when it could not.

    The folder is in Hugging Face's format, with the optimizer beside it: the best one becomes
    `model/` as it is.
    """
    import torch

    weights, moments = STRATEGIES[config.strategy].state(accelerator, model, optimizer)
    reason = None
    if accelerator.is_main_process:

        def write(folder: Path) -> None:
            accelerator.unwrap_model(model).save_pretrained(
                folder,
                state_dict=weights,
                save_original_format=False,  # else an old BERT's norms get their old names back
            )
            torch.save(moments, folder / OPTIMIZER_FILE)
            record = {"train": state.as_dict(), "scheduler": scheduler.state_dict(), "scaler": None}
            if accelerator.scaler is not None:
                record["scaler"] = accelerator.scaler.state_dict()
            write_json(folder / STATE_FILE, record)

        try:
            store.commit(state.step, write)
            newest = store.steps()[-KEPT_CHECKPOINTS:]
            store.keep({*newest, state.best_step or state.step})
        except UserError as error:
            reason = str(error)
    return broadcast(accelerator, reason)  # type: ignore[no-any-return]


def load_checkpoint(
    config: TrainConfig,
    accelerator: Any,
    store: CheckpointStore,
    model: Any,
    optimizer: Any,
    scheduler: Any,
) -> TrainState:
    """Claim the run and go on from its newest valid checkpoint, or from the start."""
    found = None
    if accelerator.is_main_process:
        store.claim()
        found = store.newest()
    found = broadcast(accelerator, found)
    if found is None:
        return TrainState()
    step, _ = found
    folder = store.bring(step)
    STRATEGIES[config.strategy].load(accelerator, model, optimizer, folder)
    record = json.loads((folder / STATE_FILE).read_text())
    scheduler.load_state_dict(record["scheduler"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(record["scaler"])
    _use_config(config, optimizer, scheduler)
    state = TrainState(**record["train"])
    if state.step != step:
        raise RuntimeError(f"{folder} holds the state of step {state.step}")
    return state


def _use_config(config: TrainConfig, optimizer: Any, scheduler: Any) -> None:
    """Learning rate and weight decay as the config has them, not the checkpoint.

    The two differ only where a population takes over another member's checkpoint.
    """
    optimizer.param_groups[0]["weight_decay"] = config.weight_decay  # see `build_optimizer`
    scheduler.base_lrs = [config.learning_rate for _ in scheduler.base_lrs]
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = config.learning_rate
        group["lr"] = config.learning_rate * factor(scheduler.last_epoch)


def broadcast(accelerator: Any, value: Any) -> Any:
    """Rank 0's `value` on every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0] if accelerator.num_processes > 1 else value
