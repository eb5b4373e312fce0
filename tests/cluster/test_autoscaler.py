"""What `ray up`'s autoscaler may add, and what a run asks of it."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from cluster.test_workers import config

from trainyard import UserError
from trainyard.cluster import autoscaler, capacity
from trainyard.glue import suite as glue
from trainyard.glue.config import SuiteConfig
from trainyard.glue.suite import train_runs, worker_capacity
from trainyard.tuning import sweep as tuning
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.sweep import trial_capacity, tune


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[autoscaler.Node]:
    """The living nodes as `capacity` sees them: none, until a test adds some."""
    seen: list[autoscaler.Node] = []
    monkeypatch.setattr(capacity, "nodes_for", lambda *_, **__: seen)
    monkeypatch.setattr(capacity, "RELEASE_SECONDS", 0.0)
    return seen


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The head of a cluster by `ray up`, 3 nodes at most; living nodes by group, none at first."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        "max_workers: 3\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 0}}\n"
        "  gpu: {max_workers: 2, resources: {CPU: 8, GPU: 1}}\n"
        "  spot: {max_workers: 8, resources: {CPU: 8, GPU: 1}, labels: {ray.io/market-type: spot}}\n"
    )
    living: Counter[str] = Counter(head=1)
    monkeypatch.setattr(autoscaler, "_living_groups", lambda: living)
    return living


SPOT = {"ray.io/market-type": "spot"}


def test_what_an_autoscaler_may_add_counts(
    launched: Counter[str], nodes: list[autoscaler.Node]
) -> None:
    """Up to each group's limit and the cluster's; what lives already is not counted twice."""
    one = {"GPU": 1.0}
    assert autoscaler.may_grow(config(2, use_gpu=True))
    assert capacity.worker_resources(config(2, use_gpu=True)) == {"GPU": 1, "CPU": 8}
    assert capacity.worker_count(config("1:4", use_gpu=True), one, attempt=0) == 2
    assert capacity.worker_count(config("1:4", use_gpu=True), one, attempt=1) == 1
    with pytest.raises(UserError, match="enough for 3"):
        capacity.worker_resources(config(4, use_gpu=True))
    launched["gpu"] = 2
    nodes += [{"CPU": 8.0, "GPU": 1.0}] * 2
    with pytest.raises(UserError, match="enough for 3"):
        capacity.worker_resources(config(4, use_gpu=True))
    with pytest.raises(
        UserError, match=r"with labels \{'ray.io/market-type': 'on-demand'\}, enough"
    ):
        capacity.worker_resources(
            config(4, use_gpu=True, label_selector={"ray.io/market-type": "on-demand"})
        )
    launched["spot"] = 1
    assert not autoscaler.may_grow(config(2, use_gpu=True))


def test_a_cluster_that_was_not_launched_cannot_grow(
    nodes: list[autoscaler.Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not nodes
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"on 0 node\(s\), enough for 0"):
        capacity.worker_resources(config(2, use_gpu=True))


@pytest.mark.parametrize(
    ("asked", "labels", "wish"),
    [("2", None, []), ("2:4", None, [4, 0]), ("2:4", SPOT, [4, 0])],
)
def test_an_elastic_run_asks_the_autoscaler_for_all_its_workers(
    launched: Counter[str], asked: str, labels: dict[str, str] | None, wish: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from ray.autoscaler import sdk

    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(sdk, "request_resources", lambda **asked: seen.append(asked))
    assert launched
    one = config(asked, use_gpu=True, label_selector=labels)
    with autoscaler.room_requested(one, {"GPU": 1.0, "CPU": 8.0}):
        assert [len(request["bundles"]) for request in seen] == wish[:1]
    assert [len(request["bundles"]) for request in seen] == wish
    if wish:
        assert seen[0]["bundles"][0] == {"GPU": 1.0, "CPU": 8.0}
        assert seen[0]["bundle_label_selectors"] == ([labels] * 4 if labels else None)


class _SizedError(Exception):
    """Raised in place of the work after its capacity is known."""


def test_what_an_autoscaler_may_add_counts_for_a_sweep_and_a_suite(
    launched: Counter[str],
    nodes: list[autoscaler.Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes.append({"CPU": 1.0})
    assert launched == {"head": 1}
    monkeypatch.setattr(tuning, "ray_session", lambda *_: nullcontext())
    monkeypatch.setattr(tuning, "preflight", lambda _: None)
    found = []
    for module, capacity_of in ((tuning, trial_capacity), (glue, worker_capacity)):

        def size(*args: Any, capacity_of: Any = capacity_of) -> None:
            found.append(capacity_of(*args))
            raise _SizedError

        monkeypatch.setattr(module, capacity_of.__name__, size)
    with pytest.raises(_SizedError):
        tune(SweepConfig(num_workers=4, storage_path=str(tmp_path), train_batch_size=64))
    suite, unused = SuiteConfig(), cast("Any", None)
    with pytest.raises(_SizedError):
        train_runs(suite, {"rte": suite.run_config("rte", 1)}, *[unused] * 5)
    assert found == [({"CPU": 1.0}, 6), ({"CPU": 1.0}, 25)]


def test_kuberay_may_add_nodes_for_a_sweep_and_a_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_KUBERAY_IN_USE", "1")
    sweep, suite = SweepConfig(num_workers=4, train_batch_size=64), SuiteConfig()
    assert trial_capacity(sweep, 12, [{"CPU": 1.0}]) == ({"CPU": 1.0}, 1)
    assert worker_capacity(suite, suite.run_config("rte", 1), []) == ({"CPU": 1.0}, 1)
