"""Check that a run with the same flags would work on the cluster, before it starts.

The size of the upload of `ray job submit` is measured. Then `nodes` runs `probe` on every node, and
`checks` evaluates the facts. Without a failure, the workers are started once, for one all-reduce.
"""

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainyard.cluster import Node, build_trainer, ray_session, worker_count, worker_resources
from trainyard.config import TrainConfig, check_packages, needed_extras
from trainyard.data import find_splits
from trainyard.doctor.cluster.checks import CHEAP, CHECKS, Finding, run_checks
from trainyard.doctor.cluster.nodes import Facts, ask, marked
from trainyard.errors import UserError, one_line
from trainyard.models import resolve_model
from trainyard.storage import absent, open_run, remove_empty, storage_folder
from trainyard.terminal import say, stage

FIT_TIMEOUT, TIMEOUT = 75.0, 120.0
"""Seconds to wait for all nodes, in `fit` and in the doctor; Ray notices dead nodes earlier."""

RUNTIME_ENV = "runtime_env.yaml"
WARN_BYTES = 10 * 2**20


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(TrainConfig):
    """Check that `train` with the same flags would work on this cluster, before it starts."""

    json: bool = False
    """Print only the JSON line, not the list of findings."""


def examine_cluster(config: DoctorConfig) -> dict[str, Any]:
    """Print all findings, and return them as the job's JSON; `ok` is True without a failure."""
    marks = {"ok": "ok     ", "warning": "WARNING", "failure": "FAILURE"}
    findings = []
    for finding in _examine(config):
        findings.append(finding)
        if not config.json:
            say(f"{marks[finding.level]} {finding.check}: {finding.sentence}")
    ok = all(finding.level != "failure" for finding in findings)
    if not config.json:
        say(
            "`trainyard train` with these flags should work here"
            if ok
            else "`trainyard train` with these flags would fail here; correct each FAILURE first"
        )
    return {
        "job": "doctor",
        "ok": ok,
        "findings": [asdict(finding) for finding in findings],
    }


def preflight(config: TrainConfig) -> None:
    """Run the `CHEAP` checks before `fit` starts workers; do nothing on a single node.

    Raises:
        UserError: A check fails, the model is not found, or the storage cannot be written.
    """
    import ray

    if sum(node["Alive"] for node in ray.nodes()) == 1:
        return
    model = resolve_model(config.model_name_or_path)
    nodes = _facts(config, model, FIT_TIMEOUT)
    for finding in run_checks(nodes, config, {}, CHEAP):
        if finding.level == "failure":
            raise UserError(finding.sentence)


def _examine(config: DoctorConfig) -> Iterator[Finding]:
    yield from check_upload(Path.cwd())
    stage("starting Ray, or connecting to it")
    storage = () if "://" in config.storage_path else (storage_folder(config.storage_path),)
    missing = absent(*storage, *(parent for folder in storage for parent in folder.parents))
    try:
        with ray_session(config):
            yield from _examine_cluster(config)
    except UserError as error:
        yield Finding("address", "failure", str(error))
    finally:
        remove_empty(missing)


def _examine_cluster(config: DoctorConfig) -> Iterator[Finding]:
    needed: dict[str, float] = {}
    rejected: dict[str, str] = {}
    try:
        config.check_new()
    except UserError as error:
        rejected["flags"] = str(error)
    try:
        check_packages(config)
    except UserError as error:
        rejected["extras"] = str(error)
    try:
        needed = worker_resources(config)
    except UserError as error:
        rejected["resources"] = str(error)
    model = None
    try:
        model = resolve_model(config.model_name_or_path)
    except UserError as error:
        rejected["model"] = str(error)
    try:
        names = ", ".join(split.name for split in find_splits(config).splits)
        yield Finding("data", "ok", f"splits: {names}")
    except UserError as error:
        rejected["data"] = str(error)
    for check, sentence in rejected.items():
        yield Finding(check, "failure", sentence)
    try:
        nodes = _facts(config, model, TIMEOUT)
    except UserError as error:
        yield Finding("storage", "failure", str(error))
        return
    findings = run_checks(nodes, config, needed, (name for name in CHECKS if name not in rejected))
    yield from findings
    if not rejected and all(finding.level != "failure" for finding in findings):
        stage("starting the workers of a run, which takes some seconds")
        yield check_workers(config, needed)


def _facts(config: TrainConfig, model: str | None, timeout: float) -> dict[str, Facts]:
    hub = model == config.model_name_or_path and not Path(model).exists()
    try:
        with marked(config.storage_path) as question:
            extras = {extra.module: extra.package for extra in needed_extras(config)}
            return ask(replace(question, model=model, hub=hub, extras=extras), timeout=timeout)
    except OSError as error:
        raise UserError(
            f"--storage-path {config.storage_path} cannot be written from here ({error.strerror}): "
            "use a folder that every node sees"
        ) from error


def check_upload(folder: Path) -> Iterator[Finding]:
    """Yield a finding on the upload of `ray job submit`; nothing without `RUNTIME_ENV`."""
    if not (folder / RUNTIME_ENV).is_file():
        return
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    size = upload_bytes(folder)
    upload = f"--working-dir . uploads {size / 2**20:.1f} MiB"
    remedy = f"list the files that jobs do not need under `excludes` in {RUNTIME_ENV}"
    if size > DASHBOARD_CLIENT_MAX_SIZE:
        limit = DASHBOARD_CLIENT_MAX_SIZE // 2**20
        yield Finding("upload", "failure", f"{upload}, Ray accepts at most {limit} MiB: {remedy}")
    elif size > WARN_BYTES:
        yield Finding("upload", "warning", f"{upload}: {remedy}")
    else:
        yield Finding("upload", "ok", upload)


def upload_bytes(folder: Path) -> int:
    """Return the bytes of the zip file that Ray builds from `folder`, without the `excludes`."""
    import yaml
    from ray._private.runtime_env.packaging import create_package

    environment = yaml.safe_load((folder / RUNTIME_ENV).read_text())
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "working_dir.zip"
        create_package(
            str(folder),
            package,
            include_gitignore=True,
            excludes=environment.get("excludes", []),
            logger=logging.getLogger(__name__),
        )
        return package.stat().st_size


def check_workers(config: TrainConfig, needed: Node) -> Finding:
    """Start the workers of a run on the requested devices for an all-reduce; return a finding."""
    import ray.train

    count = worker_count(config, needed, attempt=1)
    run = open_run(config.storage_path, f".doctor-{uuid.uuid4().hex}")
    trainer = build_trainer(
        config,
        sum_ones,
        count,
        needed,
        run.path.parent,
        name=run.path.name,
        timeout_seconds=60,
        max_failures=0,
        controller_failure_limit=0,
    )
    try:
        result: dict[str, Any] = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        reason = one_line(error)[-300:]
        return Finding(
            "workers",
            "failure",
            f"{count} worker(s) did not start or could not reach each other ({reason}): open the "
            "ports between the nodes, or set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to the interface",
        )
    finally:
        shutil.rmtree(run.path, ignore_errors=True)
    interface = f" over {result['interface']}" if result["interface"] else ""
    transport = f"{result['backend']}{interface} on {result['device']}"
    if result["sum"] != count:
        return Finding(
            "workers", "failure", f"{count} workers summed to {result['sum']} by {transport}"
        )
    if count == 1:
        return Finding("workers", "ok", f"a worker starts on {result['device']}")
    return Finding("workers", "ok", f"{count} workers connected and summed by {transport}")


def sum_ones() -> dict[str, Any]:
    """Check the process group by an all-reduce of ones; every worker runs this function.

    Returns the sum, and the names of the backend, the network interface and the device.
    """
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist

    device = ray.train.torch.get_device()
    ones = torch.ones((), device=device)
    backend = "one process"
    if ray.train.get_context().get_world_size() > 1:
        dist.all_reduce(ones)
        backend = dist.get_backend()
    if device.type == "cuda":
        version = ".".join(map(str, torch.cuda.nccl.version()))
        backend += f" (NCCL {version}, CUDA {torch.version.cuda})"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    return {"sum": ones.item(), "backend": backend, "interface": interface, "device": name}
