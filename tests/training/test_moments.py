"""Checkpoints name each moment by its parameter, however DeepSpeed lays out its partitions."""

import json
from dataclasses import replace
from typing import Any

import pytest
from support.lifted import lift_guards
from support.ranks import Attempt, run_ranks
from support.strategy_runs import KINDS, SMALL_BUCKETS, SMALL_SHARDS, Runs, two_workers

from trainyard.config import TrainConfig

pytestmark = pytest.mark.long

LAST_STEP = 4
STAGE_2: list[dict[str, Any]] = [
    {"parameter_alignment": True, **SMALL_BUCKETS},
    {"contiguous_gradients": False, "reduce_scatter": False},
    {"use_multi_rank_bucket_allreduce": False, "allgather_partitions": False},
    {"elastic_checkpoint": True, "load_from_fp32_weights": False},
    {"overlap_comm": True, "reduce_bucket_size": 1000},
]
STAGE_3: list[dict[str, Any]] = [
    {"zero_hpz_partition_size": 2, **SMALL_SHARDS},
    {"stage3_use_all_reduce_for_fetch_params": True, **SMALL_SHARDS},
    {"stage3_max_live_parameters": 1000, "stage3_prefetch_bucket_size": 500, **SMALL_SHARDS},
    {"overlap_comm": True, "reduce_bucket_size": 4000, "contiguous_gradients": False},
]
LAYOUTS = {
    f"{kind}-{index}": {**KINDS[kind], "deepspeed_config": json.dumps({"zero_optimization": keys})}
    for kind, layouts in (("zero2", STAGE_2), ("zero2-offload", STAGE_2), ("zero3", STAGE_3))
    for index, keys in enumerate(layouts)
}


@pytest.fixture(scope="module")
def runs(small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("moments")
    base = replace(
        two_workers(small_run, root / "runs"), max_steps=LAST_STEP, eval_steps=LAST_STEP,
        save_steps=None,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        lift_guards(patch)
        configs = [replace(base, run_name=name, **LAYOUTS[name]) for name in LAYOUTS]
    run_ranks(2, [Attempt(replace(base, run_name="ddp")), *map(Attempt, configs)], root / "ranks")
    return Runs(base.storage_path, LAST_STEP)


@pytest.mark.parametrize("name", LAYOUTS)
def test_moments_are_those_of_ddp_by_name(runs: Runs, name: str) -> None:
    assert runs.weight_difference(name, "ddp") <= 1e-6
    assert runs.moment_difference(name, "ddp") <= 1e-6
