"""Before any expensive minute: will a run with these flags work on this cluster?

`probe` is what a node says of itself, `nodes` asks all of them, `checks` judges the answers,
`upload` weighs what `ray job submit` would send, and `rendezvous` has the workers meet for real.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainyard.cluster import ray_session
from trainyard.config import TrainConfig
from trainyard.doctor.checks import CHEAP, CHECKS, Finding, judge
from trainyard.doctor.nodes import ask, marked
from trainyard.doctor.rendezvous import meet
from trainyard.doctor.upload import weigh
from trainyard.errors import UserError
from trainyard.progress import say
from trainyard.workers import Node, worker_resources

FIT_TIMEOUT, TIMEOUT = 60.0, 120.0


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(TrainConfig):
    """Check, before any expensive minute, whether `train` with the same flags will work here."""

    json: bool = False
    """Print the JSON line only, no list for people."""


def examine(config: DoctorConfig) -> dict[str, Any]:
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


def preflight(config: TrainConfig, storage: Path) -> None:
    """The cheap part, for `fit`: on several nodes, the same code and a storage that all of them see.

    Raises:
        UserError: with the first thing that will fail.
    """
    import ray

    if sum(node["Alive"] for node in ray.nodes()) == 1:
        return
    with marked(storage) as question:
        nodes = ask(question, timeout=FIT_TIMEOUT)
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
    from trainyard.modeling import resolve_model

    needed: Node = {}
    fits = True
    try:
        needed = worker_resources(config)
    except UserError as error:
        fits = False
        yield Finding("resources", "failure", str(error))
    storage = Path(config.storage_path).expanduser().absolute()
    try:
        with marked(storage) as question:
            model = resolve_model(config.model_name_or_path)
            hub = model == config.model_name_or_path and not Path(model).exists()
            nodes = ask(replace(question, model=model, hub=hub), timeout=TIMEOUT)
    except OSError as error:
        sentence = f"--storage-path {storage} cannot be written from here ({error.strerror})"
        yield Finding("storage", "failure", f"{sentence}: give a folder that every node sees")
        return
    findings = judge(
        nodes, config, needed, (name for name in CHECKS if fits or name != "resources")
    )
    yield from findings
    if fits and all(finding.level != "failure" for finding in findings):
        yield meet(config, needed)
