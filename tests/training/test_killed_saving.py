"""A run is killed at every phase of a checkpoint; the same command ends it with the same bits."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.forks import run_forked
from support.lifted import lift_guards
from support.ranks import Attempt
from support.runs_locally import weights_hash

from trainyard.config import TrainConfig
from trainyard.storage.folder import RunFolder, open_run

LAST_STEP = 12
SAVING = "trainyard.training.worker.saving"
STORE = "trainyard.storage.checkpoints"
PHASES = {
    "while it copies": f"{SAVING}:HostMemory.wait:2",
    "while it writes and training continues": "while:8",
    "when files are written": f"{STORE}:sync_tree:2",
    "when files are durable": f"{STORE}:fault_of:2",
    "when it is renamed": f"{STORE}:CheckpointStore.keep:2",
    "while an older one is deleted": f"{STORE}:shutil.rmtree:1",
}
"""Phases of rank 0 -> place (`die_at`): in the checkpoint of step 6, the last one in that of step 9."""
SECOND_RANK = {
    "while it copies": f"{SAVING}:HostMemory.wait:2",
    "while it writes and training continues": "while:8",
    "when files are written": f"{STORE}:sync_file:3",
    "when files are durable": f"{STORE}:entry_of:4",
}
"""Phases of a rank that writes a part."""
SAVED = {
    "while it copies": {3},
    "while it writes and training continues": {3},
    "when files are written": {3},
    "when files are durable": {3},
    "when it is renamed": {3, 6},
    "while an older one is deleted": {6, 9},
}
"""Checkpoints that are there after the kill."""


@dataclass(frozen=True)
class Case:
    strategy: str
    world: int
    rank: int
    phase: str
    kills_all: bool = False

    @property
    def name(self) -> str:
        who = "all" if self.kills_all else f"rank-{self.rank}"
        return f"{self.strategy}-{self.world}-{who}-{self.phase.replace(' ', '-')}"

    @property
    def place(self) -> str:
        return (SECOND_RANK if self.rank else PHASES)[self.phase]


WRITES = "while it writes and training continues"
QUICK = [
    Case("ddp", 1, 0, WRITES),
    Case("ddp", 1, 0, "when files are durable"),
    Case("fsdp", 2, 1, WRITES),
]
FULL = [
    case
    for strategy in ("ddp", "fsdp", "deepspeed")
    for case in (
        *(Case(strategy, 1, 0, phase) for phase in PHASES if strategy == "ddp"),
        *(Case(strategy, 2, 0, phase) for phase in PHASES),
        *(Case(strategy, 2, 0, phase, kills_all=True) for phase in PHASES),
        *(Case(strategy, 2, 1, phase) for phase in SECOND_RANK if strategy != "ddp"),
    )
    if case not in QUICK
]


class Runs:
    """Runs that are killed and run again, and undisturbed ones."""

    def __init__(self, base: TrainConfig, root: Path, cases: list[Case]) -> None:
        self._base, attempts = base, list[Attempt]()
        for strategy, world in sorted({(case.strategy, case.world) for case in cases}):
            whole = self._config(strategy, world, f"{strategy}-{world}")
            attempts.append(Attempt(whole))
            for case in cases:
                if (case.strategy, case.world) == (strategy, world):
                    config = self._config(strategy, world, case.name)
                    killed = Attempt(
                        config, killed=(case.rank, case.place), kills_all=case.kills_all
                    )
                    attempts += [killed, Attempt(config)]
        run_forked(attempts, root / "meeting")

    def _config(self, strategy: Any, world: int, name: str) -> TrainConfig:
        return replace(self._base, strategy=strategy, num_workers=world, run_name=name)

    def folder(self, name: str) -> RunFolder:
        return open_run(self._base.storage_path, name)


@pytest.fixture(scope="module")
def runs(
    small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Runs:
    root = tmp_path_factory.mktemp("killed")
    base = replace(
        small_run, storage_path=str(root / "runs"), max_steps=LAST_STEP, save_steps=3,
        eval_steps=LAST_STEP,
    )  # fmt: skip
    chosen = [item.callspec.params["case"] for item in request.session.items
              if item.path == request.path and hasattr(item, "callspec")]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        lift_guards(patch)
        return Runs(base, root, chosen)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case in QUICK else pytest.mark.long)
        for case in [*QUICK, *FULL]
    ],
)
def test_killed_and_run_again_it_ends_with_the_same_bits(runs: Runs, case: Case) -> None:
    killed, whole = runs.folder(case.name), runs.folder(f"{case.strategy}-{case.world}")
    ended = json.loads((killed.path / "outcome.json").read_text())
    assert (ended["status"], ended["step"]) == ("finished", LAST_STEP)
    assert first_step(killed) == max(SAVED[case.phase])
    assert weights_hash(killed, LAST_STEP) == weights_hash(whole, LAST_STEP)
    assert killed.metrics() == whole.metrics()
    assert killed.store().steps() == whole.store().steps() == [9, LAST_STEP]
    assert not list(killed.checkpoints.glob(".inprogress*"))


def first_step(folder: RunFolder) -> int:
    """Step that the last attempt resumed from, by the names of its ledger's files."""
    return max(int(path.name.split("-")[1]) for path in folder.ledger.iterdir())
