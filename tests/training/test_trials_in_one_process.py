"""Runs of one worker that follow each other in a process, like a sweep's trials, change no bit."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.lifted import lift_guards
from support.ranks import Attempt, run_ranks
from support.strategy_runs import KINDS, Runs, two_workers

from trainyard.config import TrainConfig

LAST_STEP = 8


@pytest.mark.long
def test_fsdp_then_zero_3_then_ddp_have_the_bits_of_each_alone(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, where the linear function of ZeRO-3 has other bits than torch's."""
    lift_guards(monkeypatch)
    base = replace(
        two_workers(small_run, tmp_path / "runs"), num_workers=1, mixed_precision="bf16",
        max_steps=LAST_STEP,
    )  # fmt: skip
    kinds = ("fsdp", "zero3", "ddp")
    alone = {kind: Attempt(replace(base, run_name=kind, **KINDS[kind])) for kind in kinds}
    after = [
        Attempt(replace(base, run_name=f"{kind}-after", **KINDS[kind])) for kind in ("zero3", "ddp")
    ]
    run_ranks(1, [alone["fsdp"], *after], tmp_path / "together")
    for kind in ("zero3", "ddp"):
        run_ranks(1, [alone[kind]], tmp_path / kind)
    runs = Runs(base.storage_path, LAST_STEP)
    assert runs.same_bits("zero3-after", "zero3")
    assert runs.same_bits("ddp-after", "ddp")
