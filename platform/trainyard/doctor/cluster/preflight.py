"""Before any expensive minute: will a run with these flags work on this cluster?

`probe` is what a node says of itself, `nodes` asks all of them, `checks` judges the answers,
`upload` weighs what `ray job submit` would send, and `rendezvous` has the workers meet for real.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainyard.cluster import ray_session, worker_resources
from trainyard.config import TrainConfig
from trainyard.data import find_splits
from trainyard.doctor.cluster.checks import CHEAP, CHECKS, Finding, judge
from trainyard.doctor.cluster.nodes import Facts, ask, marked
from trainyard.doctor.cluster.rendezvous import meet
from trainyard.doctor.cluster.upload import weigh
from trainyard.errors import UserError
from trainyard.models import resolve_model
from trainyard.terminal import say

FIT_TIMEOUT, TIMEOUT = 75.0, 120.0
"""Seconds for a node's answer: more than Ray takes to notice that a node is gone."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(TrainConfig):
    """Check that `train` with the same flags works here, before any expensive minute."""

    json: bool = False
    """Print only the JSON line, without the list for people."""


def examine_cluster(config: DoctorConfig) -> dict[str, Any]:
    """All findings about the cluster and the request, as the job's JSON; `ok` without failures."""
    findings = list(_examine(config))
    if not config.json:
        marks = {"ok": "ok     ", "warning": "WARNING", "failure": "FAILURE"}
        for finding in findings:
            say(f"{marks[finding.level]} {finding.check}: {finding.sentence}")
    return {
        "job": "doctor",
        "ok": all(finding.level != "failure" for finding in findings),
        "findings": [finding.as_json() for finding in findings],
    }


def preflight(config: TrainConfig) -> None:
    """The cheap part, for `fit`: on several nodes, the same code, and a storage and a model that all see.

    Raises:
        UserError: with the first thing that will fail.
    """
    import ray

    if sum(node["Alive"] for node in ray.nodes()) == 1:
        return
    model = resolve_model(config.model_name_or_path)
    nodes = _asked(config, model, FIT_TIMEOUT)
    for finding in judge(nodes, config, {}, CHEAP):
        if finding.level == "failure":
            raise UserError(finding.sentence)


def _examine(config: DoctorConfig) -> Iterator[Finding]:
    yield from weigh(Path.cwd())
    try:
        with ray_session(config):
            yield from _examine_cluster(config)
    except UserError as error:
        yield Finding("address", "failure", str(error))


def _examine_cluster(config: DoctorConfig) -> Iterator[Finding]:
    needed: dict[str, float] = {}
    refused: dict[str, str] = {}
    try:
        needed = worker_resources(config)
    except UserError as error:
        refused["resources"] = str(error)
    model = None
    try:
        model = resolve_model(config.model_name_or_path)
    except UserError as error:
        refused["model"] = str(error)
    try:
        names = ", ".join(split.name for split in find_splits(config).splits)
        yield Finding("data", "ok", f"found here: {names}")
    except UserError as error:
        refused["data"] = str(error)
    for check, sentence in refused.items():
        yield Finding(check, "failure", sentence)
    try:
        nodes = _asked(config, model, TIMEOUT)
    except UserError as error:
        yield Finding("storage", "failure", str(error))
        return
    findings = judge(nodes, config, needed, (name for name in CHECKS if name not in refused))
    yield from findings
    if not refused and all(finding.level != "failure" for finding in findings):
        yield meet(config, needed)


def _asked(config: TrainConfig, model: str | None, timeout: float) -> dict[str, Facts]:
    hub = model == config.model_name_or_path and not Path(model).exists()
    try:
        with marked(config.storage_path) as question:
            return ask(replace(question, model=model, hub=hub), timeout=timeout)
    except OSError as error:
        raise UserError(
            f"--storage-path {config.storage_path} cannot be written from here ({error.strerror}): give "
            "a folder that every node sees"
        ) from error
