"""A local Ray cluster that takes jobs by `ray job submit`, in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support.job_scripts import ROOT
from support.serving_locally import free_port

CLUSTER = """
import ray, signal, sys
ray.init(address="local", num_cpus=4, include_dashboard=True, dashboard_port=int(sys.argv[1]),
         object_store_memory=200_000_000)
print("up", flush=True)
signal.pause()
"""
"""Another process's, with a dashboard: the session's Ray has none."""


KEEPS_PACKAGES = {"RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S": "3600"}
"""Ray deletes an uploaded package ten minutes later once no job uses it, also between the look-up of
the next submission, which then does not upload it, and the start of its job."""


def submit(address: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command by `ray job submit`, with the checkout as its working directory."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", address,
         "--runtime-env", "runtime_env.yaml", "--working-dir", ".", "--", *words],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@contextmanager
def job_cluster(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a cluster until its agent takes jobs; yield the address for them.

    `environment` is added to that of the jobs.
    """
    port = free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of the jobs' `python`
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(port)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PATH": path, **KEEPS_PACKAGES, **(environment or {})},
    )  # fmt: skip
    try:
        assert cluster.stdout is not None
        assert cluster.stdout.readline() == "up\n"
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 300
        while (done := submit(address, "true")).returncode != 0:  # its agent starts last
            assert time.monotonic() < deadline, done.stdout[-2000:] + done.stderr[-2000:]
        yield address
    finally:
        cluster.terminate()
        cluster.wait(60)
