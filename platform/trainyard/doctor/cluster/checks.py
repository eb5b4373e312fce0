"""Checks of the nodes' facts. Each yields sentences about what works, may fail or will fail."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainyard.cluster import Node, fitting, may_grow
from trainyard.config import TrainConfig
from trainyard.doctor.cluster.nodes import Facts

GIB = 2**30
LEAST_DISK = 5 * GIB
LEAST_SHARED_MEMORY = GIB
WARN_SKEW, FAIL_SKEW = 1.0, 30.0
"""Seconds. A lease expires after a minute without a heartbeat, by the clocks of two nodes."""

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One sentence about the cluster. A `failure` means that a run will not work."""

    check: str
    level: Level
    sentence: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)


Sentences = Iterator[tuple[Level, str]]
Nodes = dict[str, Facts]


def _answers(nodes: Nodes, config: TrainConfig, needed: Node) -> Sentences:  # noqa: ARG001
    for facts in nodes.values():
        if "fault" in facts:
            yield "failure", f"node {facts['address']} cannot run a task: {facts['fault']}"
    yield "ok", f"{len(nodes)} node(s): {_list(facts['address'] for facts in nodes.values())}"


def _versions(nodes: Nodes, config: TrainConfig, needed: Node) -> Sentences:  # noqa: ARG001
    addresses_of: dict[str, dict[str, list[str]]] = {}
    for facts in _answering(nodes):
        for name, version in {"python": facts["python"], **facts["packages"]}.items():
            by_version = addresses_of.setdefault(name, {})
            by_version.setdefault(str(version), []).append(facts["address"])
    for name, versions in addresses_of.items():
        if len(versions) > 1:
            where = "; ".join(
                f"{version} on {_list(addresses)}" for version, addresses in versions.items()
            )
            yield (
                "failure",
                f"{name} differs between nodes ({where}): install with constraints.txt everywhere",
            )
        elif "None" in versions:
            yield "failure", f"{name} is not installed on any node: install with constraints.txt"
    yield "ok", "the same Python and packages everywhere"


def _package(nodes: Nodes, config: TrainConfig, needed: Node) -> Sentences:  # noqa: ARG001
    digests = set()
    for facts in _answering(nodes):
        package = facts["trainyard"]
        if "fault" in package:
            yield (
                "failure",
                f"trainyard cannot be imported on {facts['address']} ({package['fault']}): submit the "
                "job with --runtime-env runtime_env.yaml --working-dir .",
            )
        digests.add(package.get("digest"))
    if len(digests - {None}) > 1:
        yield (
            "failure",
            "nodes import different code of trainyard: submit the job with --working-dir ., or "
            "install one version everywhere",
        )
    yield "ok", "trainyard is imported everywhere, the same code"


def _storage(nodes: Nodes, config: TrainConfig, needed: Node) -> Sentences:  # noqa: ARG001
    for facts in _answering(nodes):
        for verb in ("reads", "writes"):
            if facts[verb] is not None:
                yield (
                    "failure",
                    f"--storage-path {config.storage_path} is not shared with {facts['address']} "
                    f"({verb[:-1]}: {facts[verb]}): use a folder that every node sees at the same path",
                )
    yield "ok", f"{config.storage_path} can be read and written everywhere"


def _model(nodes: Nodes, config: TrainConfig, needed: Node) -> Sentences:  # noqa: ARG001
    for facts in _answering(nodes):
        if facts["model"] is not None:
            yield (
                "failure",
                f"model {config.model_name_or_path} cannot be loaded on {facts['address']} "
                f"({facts['model']}): set --model-name-or-path to a folder that every node sees",
            )
    yield (
        "ok",
        f"model {config.model_name_or_path} can be loaded, or the Hub answers, on every node",
    )


def _space(nodes: Nodes, config: TrainConfig, needed: Node) -> Sentences:  # noqa: ARG001
    for facts in _answering(nodes):
        for name, least in (
            ("disk", LEAST_DISK),
            ("temporary", LEAST_DISK),
            ("shared_memory", LEAST_SHARED_MEMORY),
        ):
            space = facts[name]
            if space is not None and space["free"] < least:
                yield (
                    "warning",
                    f"{name.replace('_', ' ')} of {facts['address']}: {space['free'] / GIB:.1f} GiB free "
                    f"of {space['total'] / GIB:.1f}; free at least {least / GIB:.0f} GiB"
                    + (" (containers: --shm-size)" if name == "shared_memory" else ""),
                )
    yield "ok", "enough space on the disks and in shared memory"


def _clocks(nodes: Nodes, config: TrainConfig, needed: Node) -> Sentences:  # noqa: ARG001
    for facts in _answering(nodes):
        if facts["clock"] is None:
            continue
        off = abs(facts["clock"]["ahead"]) - facts["clock"]["uncertainty"]
        if off > WARN_SKEW:
            level: Level = "failure" if off > FAIL_SKEW else "warning"
            yield (
                level,
                f"the clock of {facts['address']} is off by {off:.0f} s: run an NTP client there",
            )
    yield "ok", "the clocks agree"


def _authentication(nodes: Nodes, config: TrainConfig, needed: Node) -> Sentences:  # noqa: ARG001
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    if is_token_auth_enabled():
        yield "ok", "token authentication is on"
    elif len(nodes) > 1:
        yield (
            "warning",
            "token authentication is off: any client that reaches a port of this cluster can run code on "
            "it; export RAY_AUTH_MODE=token before `ray start` on every node, and on this machine",
        )
    else:
        yield "ok", "one node, token authentication off"


def _data(nodes: Nodes, config: TrainConfig, needed: Node) -> Sentences:
    """Tokenization ends before the workers start, so it needs no CPU in addition to theirs."""
    resources = [facts["resources"] for facts in nodes.values()]
    if not any(node.get("CPU", 0) >= 1 for node in resources):
        if may_grow(config):
            yield "warning", "no node has a CPU yet: the autoscaler must start one first"
        else:
            yield (
                "failure",
                "no node has a CPU for Ray Data: start one with --num-cpus of at least 1",
            )
    yield (
        "ok",
        f"{fitting(resources, needed)} worker(s) of {needed} fit, --num-workers {config.num_workers} "
        "requested; tokenization runs before them",
    )


CHECKS: dict[str, Callable[[Nodes, TrainConfig, Node], Sentences]] = {
    "nodes": _answers,
    "versions": _versions,
    "package": _package,
    "storage": _storage,
    "resources": _data,
    "model": _model,
    "clocks": _clocks,
    "space": _space,
    "authentication": _authentication,
}
CHEAP = ("nodes", "versions", "package", "storage", "model")
"""Checks that `fit` makes on a cluster of several nodes before it starts anything."""


def run_checks(
    nodes: Nodes, config: TrainConfig, needed: Node, checks: Iterable[str]
) -> list[Finding]:
    """Run the named checks. A check without complaint yields one finding of level `ok`."""
    findings = []
    for name in checks:
        sentences = list(CHECKS[name](nodes, config, needed))
        complaints = [(level, text) for level, text in sentences if level != "ok"]
        findings += [Finding(name, level, text) for level, text in complaints or sentences]
    return findings


def _answering(nodes: Nodes) -> list[Facts]:
    return [facts for facts in nodes.values() if "fault" not in facts]


def _list(names: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, names)))
