"""Checks of the facts about all nodes; each check yields pairs of level and sentence."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trainyard.cluster import Node, fitting, may_grow
from trainyard.config import TrainConfig, needed_extras
from trainyard.doctor.cluster.nodes import Facts

GIB = 2**30
LEAST_SPACE = {"disk": 5 * GIB, "temporary": 5 * GIB, "shared_memory": GIB}
"""Bytes. Minimum free space, by the name of the fact."""
WARN_SKEW, FAIL_SKEW = 1.0, 30.0
"""Seconds. Difference between a node's and the driver's clock for a warning, or a failure."""

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """Result of a check, as a sentence. A `failure` means that a run will not work."""

    check: str
    level: Level
    sentence: str


Sentences = Iterator[tuple[Level, str]]


class Cluster(NamedTuple):
    """Facts about all nodes by node id, and the config of the run to start on them."""

    nodes: dict[str, Facts]
    config: TrainConfig
    needed: Node
    """Resources of one worker."""

    @property
    def answering(self) -> list[Facts]:
        return [facts for facts in self.nodes.values() if "fault" not in facts]


def _answers(cluster: Cluster) -> Sentences:
    for facts in cluster.nodes.values():
        if "fault" in facts:
            yield "failure", f"node {facts['address']} cannot run a task: {facts['fault']}"
    addresses = _list(facts["address"] for facts in cluster.nodes.values())
    yield "ok", f"{len(cluster.nodes)} node(s): {addresses}"


def _versions(cluster: Cluster) -> Sentences:
    found: dict[str, dict[str, list[str]]] = {}
    for facts in cluster.answering:
        installed = {name: version for name, version in facts["extras"].items() if version}
        for name, version in {
            "python": facts["python"],
            **facts["packages"],
            **installed,
        }.items():
            found.setdefault(name, {}).setdefault(str(version), []).append(facts["address"])
    for name, nodes_of in found.items():
        if len(nodes_of) > 1:
            where = "; ".join(f"{version} on {_list(nodes)}" for version, nodes in nodes_of.items())
            differs = f"{name} differs between nodes ({where})"
            yield "failure", f"{differs}: install with constraints.txt everywhere"
        elif "None" in nodes_of:
            yield "failure", f"{name} is not installed on any node: install with constraints.txt"
    yield "ok", "the same Python and packages everywhere"


def _extras(cluster: Cluster) -> Sentences:
    needed = needed_extras(cluster.config)
    for extra in needed:
        for facts in cluster.answering:
            if facts["extras"][extra.module] is None:
                yield "failure", extra.absent(f" on {facts['address']}")
    names = _list(extra.module for extra in needed)
    yield "ok", f"installed everywhere: {names}" if needed else "these flags need no other package"


def _package(cluster: Cluster) -> Sentences:
    for facts in cluster.answering:
        if fault := facts["trainyard"].get("fault"):
            failed = f"trainyard cannot be imported on {facts['address']} ({fault})"
            remedy = "submit the job with --runtime-env runtime_env.yaml --working-dir ."
            yield "failure", f"{failed}: {remedy}"
    if len({facts["trainyard"].get("digest") for facts in cluster.answering} - {None}) > 1:
        remedy = "submit the job with --working-dir ., or install one version everywhere"
        yield "failure", f"nodes import different code of trainyard: {remedy}"
    yield "ok", "trainyard is imported everywhere, the same code"


def _storage(cluster: Cluster) -> Sentences:
    path = cluster.config.storage_path
    for facts in cluster.answering:
        for verb in ("reads", "writes"):
            if facts[verb] is not None:
                failed = f"--storage-path {path} is not shared with {facts['address']}"
                remedy = "use a folder that every node sees at the same path"
                yield "failure", f"{failed} ({verb[:-1]}: {facts[verb]}): {remedy}"
    yield "ok", f"{path} can be read and written everywhere"


def _model(cluster: Cluster) -> Sentences:
    model = f"model {cluster.config.model_name_or_path}"
    for facts in cluster.answering:
        if facts["model"] is not None:
            failed = f"{model} cannot be loaded on {facts['address']} ({facts['model']})"
            remedy = "set --model-name-or-path to a folder that every node sees"
            yield "failure", f"{failed}: {remedy}"
    yield "ok", f"{model} can be loaded, or the Hub answers, on every node"


def _space(cluster: Cluster) -> Sentences:
    for facts in cluster.answering:
        for name, least in LEAST_SPACE.items():
            space = facts[name]
            if space is not None and space["free"] < least:
                free, total = (space[key] / GIB for key in ("free", "total"))
                found = f"{name.replace('_', ' ')} of {facts['address']}: {free:.1f} GiB free"
                remedy = f"free at least {least / GIB:.0f} GiB"
                if name == "shared_memory":
                    remedy += " (containers: --shm-size)"
                yield "warning", f"{found} of {total:.1f}; {remedy}"
    yield "ok", "enough space on the disks and in shared memory"


def _clocks(cluster: Cluster) -> Sentences:
    for facts in cluster.answering:
        if (clock := facts["clock"]) is not None:
            off = abs(clock["ahead"]) - clock["uncertainty"]
            if off > WARN_SKEW:
                level: Level = "failure" if off > FAIL_SKEW else "warning"
                found = f"the clock of {facts['address']} is off by {off:.0f} s"
                yield level, f"{found}: run an NTP client there"
    yield "ok", "the clocks agree"


def _authentication(cluster: Cluster) -> Sentences:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    if is_token_auth_enabled():
        yield "ok", "token authentication is on"
    elif len(cluster.nodes) > 1:
        yield (
            "warning",
            "token authentication is off: any client that reaches a port of this cluster can run code on "
            "it; export RAY_AUTH_MODE=token before `ray start` on every node, and on this machine",
        )
    else:
        yield "ok", "one node, token authentication off"


def _data(cluster: Cluster) -> Sentences:
    """Check that a node has a CPU for tokenization, and count the workers that fit."""
    resources = [facts["resources"] for facts in cluster.nodes.values()]
    if not any(node.get("CPU", 0) >= 1 for node in resources):
        if may_grow(cluster.config):
            yield "warning", "no node has a CPU yet: the autoscaler must start one first"
        else:
            remedy = "start one with --num-cpus of at least 1"
            yield "failure", f"no node has a CPU for Ray Data: {remedy}"
    fit = f"{fitting(resources, cluster.needed)} worker(s) of {cluster.needed} fit"
    requested = f"--num-workers {cluster.config.num_workers} requested"
    yield "ok", f"{fit}, {requested}; tokenization runs before them"


CHECKS: dict[str, Callable[[Cluster], Sentences]] = {
    "nodes": _answers,
    "versions": _versions,
    "extras": _extras,
    "package": _package,
    "storage": _storage,
    "resources": _data,
    "model": _model,
    "clocks": _clocks,
    "space": _space,
    "authentication": _authentication,
}
CHEAP = ("nodes", "versions", "extras", "package", "storage", "model")
"""Names of the checks that `fit` makes on a cluster of several nodes before the workers start."""


def run_checks(
    nodes: dict[str, Facts], config: TrainConfig, needed: Node, checks: Iterable[str]
) -> list[Finding]:
    """Run the named checks; return the warnings and failures of each, or else its `ok` finding."""
    findings = []
    for name in checks:
        sentences = list(CHECKS[name](Cluster(nodes, config, needed)))
        complaints = [(level, text) for level, text in sentences if level != "ok"]
        findings += [Finding(name, level, text) for level, text in complaints or sentences]
    return findings


def _list(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names)))
