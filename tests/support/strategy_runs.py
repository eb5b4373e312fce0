"""Runs of every strategy and precision: whole, cut off and resumed, and moved to other workers."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from support.ranks import Attempt
from support.runs_locally import weights_hash

from trainyard.config import Precision, TrainConfig
from trainyard.storage.folder import RunFolder, open_run
from trainyard.training.worker.weights import stored_moments, whole_weights

LAST_STEP = 16
"""fp16 skips the first steps, so the losses of fewer steps would come from initial weights."""
CUT_AT = 7
"""Between two checkpoints; fp16 still skips steps before it and after."""
SMALL_BUCKETS = {"allgather_bucket_size": 1500, "reduce_bucket_size": 2000}
SMALL_SHARDS = {"stage3_param_persistence_threshold": 0, "sub_group_size": 3000}
"""Without the first, DeepSpeed keeps weights below 100,000 elements whole on each worker."""
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"strategy": "fsdp"},
    "fsdp-offload": {"strategy": "fsdp", "fsdp_offload": True},
    "zero2": {"strategy": "deepspeed",
              "deepspeed_config": json.dumps({"zero_optimization": SMALL_BUCKETS})},
    "zero2-offload": {"strategy": "deepspeed", "zero_offload": "cpu"},
    "zero3": {"strategy": "deepspeed", "zero_stage": 3,
              "deepspeed_config": json.dumps({"zero_optimization": SMALL_SHARDS})},
}  # fmt: skip
"""The tiny model's weights are sharded, and its gradients need several buckets, like a large one's."""
MAX_GRAD_NORM = 0.05
"""Below the norm of the gradients of every step, so that each is clipped."""
PRECISIONS: tuple[Precision, ...] = ("no", "bf16", "fp16")


def two_workers(small_run: TrainConfig, storage: Path) -> TrainConfig:
    """Return the config that all runs share; `KINDS` and a precision change it."""
    return replace(
        small_run, storage_path=str(storage), max_steps=LAST_STEP, save_steps=4, eval_steps=8,
        num_workers=2, weight_decay=0.5, max_grad_norm=MAX_GRAD_NORM, ledger=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A strategy in a precision, and the numbers of workers that resume its runs."""

    kind: str
    precision: Precision
    worlds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the whole run. Others add `-cut`, or `-` and a number of workers."""
        return f"{self.kind}-{self.precision}"

    def attempts(self, base: TrainConfig) -> dict[int, list[Attempt]]:
        """List the attempts of all runs by number of processes; those of two come first."""
        whole = replace(
            base, run_name=self.name, mixed_precision=self.precision, **KINDS[self.kind]
        )
        cut = replace(whole, run_name=f"{self.name}-cut")
        found = {2: [Attempt(whole), Attempt(cut, cut_at=CUT_AT), Attempt(cut)]}
        for world in self.worlds:
            moved = replace(whole, run_name=f"{self.name}-{world}")
            found[2].append(Attempt(moved, cut_at=CUT_AT))
            found[world] = [Attempt(replace(moved, num_workers=world))]
        return found


class Runs:
    """Folders of finished runs, by name."""

    def __init__(self, storage: str, last_step: int = LAST_STEP) -> None:
        self.storage, self.last_step = storage, last_step

    def __call__(self, name: str) -> RunFolder:
        """Return the folder of a run, which must have finished."""
        folder = open_run(self.storage, name)
        ended = json.loads((folder.path / "outcome.json").read_text())
        assert (ended["status"], ended["step"]) == ("finished", self.last_step), ended
        return folder

    def steps(self, name: str) -> list[dict[str, Any]]:
        """Return the logged lines of training."""
        return [line for line in self(name).metrics() if "loss" in line]

    def losses(self, name: str) -> list[float]:
        """Return the loss of each logged step."""
        return [line["loss"] for line in self.steps(name)]

    def checkpoint(self, name: str) -> Path:
        """Return the folder of the last checkpoint."""
        return self(name).checkpoints / f"step-{self.last_step:08d}"

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Return the whole weights of the last checkpoint."""
        return whole_weights(self.checkpoint(name))

    def same_bits(self, name: str, other: str) -> bool:
        """Return whether two runs have the same metrics, final weights and optimizer state."""
        one, two = self(name), self(other)
        hashes = [weights_hash(folder, self.last_step) for folder in (one, two)]
        return hashes[0] == hashes[1] and one.metrics() == two.metrics()

    def loss_difference(self, name: str, other: str) -> float:
        """Return the largest difference of a step's loss between two runs."""
        pairs = zip(self.losses(name), self.losses(other), strict=True)
        return max(abs(one - two) for one, two in pairs)

    def weight_difference(self, name: str, other: str) -> float:
        """Return the largest difference of a final weight between two runs."""
        expected, given = self.weights(other), self.weights(name)
        assert given.keys() == expected.keys()
        return max(float((given[key] - expected[key]).abs().max()) for key in expected)

    def moments(self, name: str) -> dict[str, torch.Tensor]:
        """Return the moments of the last checkpoint as PARAMETER.MOMENT; ddp stores them by index."""
        state = stored_moments(self.checkpoint(name))["state"]
        if 0 in state:
            shapes = {key: tensor.ndim for key, tensor in self.load(name).named_parameters()}
            names = sorted(shapes, key=lambda key: shapes[key] < 2)  # see `build_optimizer`
            state = dict(zip(names, (state[index] for index in sorted(state)), strict=True))
        return {
            f"{parameter}.{key}": parts[key]
            for parameter, parts in state.items()
            for key in ("exp_avg", "exp_avg_sq")
        }

    def moment_difference(self, name: str, other: str) -> float:
        """Return the largest difference of a parameter's moment between two runs."""
        expected, given = self.moments(other), self.moments(name)
        assert given.keys() == expected.keys()
        return max(float((given[key] - expected[key]).abs().max()) for key in expected)

    def load(self, name: str) -> Any:
        """Load the last checkpoint with plain transformers; no weight is missing or unknown."""
        from transformers import AutoModelForSequenceClassification

        model, report = AutoModelForSequenceClassification.from_pretrained(
            self.checkpoint(name), output_loading_info=True
        )
        assert not report["missing_keys"] | report["unexpected_keys"]
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
        return model
