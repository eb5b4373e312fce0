"""The formulas of benchmarks/scaling_model.py at their limits."""

import math
from dataclasses import replace

import pytest
from result_tables import TABLES
from scaling_model import (
    BERT,
    DDP,
    FAILURES,
    FSDP,
    MACHINES,
    STATE,
    WEIGHT,
    WRITER,
    ZERO2,
    Strategy,
    best_interval,
    between_failures,
    bytes_per_gpu,
    checkpoint_seconds,
    lost_share,
    step_seconds,
    total,
    unit_seconds,
)
from support.job_scripts import ROOT

STRATEGIES = pytest.mark.parametrize("strategy", [DDP, ZERO2, FSDP], ids=lambda one: one.name)
FREE = replace(MACHINES[2], nvlink=math.inf, link=math.inf, latency=0.0)


@STRATEGIES
def test_one_gpu_exchanges_nothing_and_holds_all(strategy: Strategy) -> None:
    parts = step_seconds(BERT, MACHINES[1], 1, 8192, strategy)
    assert total(parts) == parts["forward"] + parts["backward"] + parts["optimizer"]
    assert bytes_per_gpu(BERT, 1, strategy) == STATE * BERT.weights


@STRATEGIES
def test_with_infinite_bandwidth_workers_cost_nothing(strategy: Strategy) -> None:
    alone = step_seconds(BERT, FREE, 1, 8192, strategy)
    parts = step_seconds(BERT, FREE, 256, 8192, strategy)
    assert parts["forward"] + parts["backward"] == alone["forward"] + alone["backward"]
    assert total(parts) == pytest.approx(
        alone["forward"] + alone["backward"] + alone["optimizer"] / (256 if strategy.shards else 1)
    )


def test_a_unit_is_bound_by_the_link_that_it_crosses() -> None:
    machines = MACHINES[2]
    sent = WEIGHT * BERT.weights
    assert unit_seconds(BERT, machines, 8) == pytest.approx(7 / 8 * sent / machines.nvlink)
    assert unit_seconds(BERT, replace(machines, nvlink=math.inf), 256) == pytest.approx(
        31 / 32 * sent / machines.link
    )
    assert unit_seconds(BERT, MACHINES[0], 2) == pytest.approx(sent / 2 / MACHINES[0].link)


def test_shards_move_half_as_much_again_as_copies() -> None:
    copies, shards = (
        step_seconds(BERT, replace(MACHINES[2], latency=0.0), 256, 8192, one) for one in (DDP, FSDP)
    )
    assert shards["exchange"] + shards["exchange, forward"] == pytest.approx(
        1.5 * copies["exchange"]
    )
    assert bytes_per_gpu(BERT, 256, FSDP) == STATE * BERT.weights / 256
    assert bytes_per_gpu(BERT, 10**9, ZERO2) == pytest.approx(WEIGHT * BERT.weights)


def test_writers_share_a_checkpoint_until_the_storage_is_full() -> None:
    assert checkpoint_seconds(BERT, 4) == pytest.approx(checkpoint_seconds(BERT, 1) / 4)
    assert checkpoint_seconds(BERT, 1) == pytest.approx(12 * BERT.weights / WRITER)
    assert checkpoint_seconds(BERT, 256) == checkpoint_seconds(BERT, 10**6)


def test_the_best_interval_loses_the_least() -> None:
    failure = between_failures(256)
    assert failure == pytest.approx(3600 / FAILURES / 256)
    best = best_interval(5.0, failure)
    least = lost_share(5.0, best, failure)
    assert all(least < lost_share(5.0, best * factor, failure) for factor in (0.5, 0.9, 1.1, 2))
    assert lost_share(5.0, best, math.inf) == 5.0 / best


@pytest.mark.parametrize(
    "name",
    ["scaling-assumptions", "scaling-machines", "scaling-model", "large-models", "lost-work"],
)
def test_the_docs_show_the_present_constants_and_predictions(name: str) -> None:
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert f"<!-- table: {name} -->\n{TABLES[name]()}<!-- end -->" in page
