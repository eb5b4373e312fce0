"""Every job by `ray job submit` to a local cluster, as the README has it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.every_job import check_answer, check_files, every_job
from support.serving_locally import free_port
from support.tiny import write_task, write_tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_tiny_model(folder / "model")
    write_task(folder / "glue")
    return folder


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


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    port = free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of the jobs' `python`
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(port)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PATH": path, **KEEPS_PACKAGES},
    )  # fmt: skip
    try:
        assert cluster.stdout is not None
        assert cluster.stdout.readline() == "up\n"
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while (done := submit(address, "true")).returncode != 0:  # its agent starts last
            assert time.monotonic() < deadline, done.stdout[-2000:] + done.stderr[-2000:]
        yield address
    finally:
        cluster.terminate()
        cluster.wait(60)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_job(address: str, shared: Path) -> None:
    jobs = every_job(shared)
    assert jobs.keys() == {path.stem for path in (ROOT / "jobs").glob("*.py")}
    for job, flags in jobs.items():
        done = submit(address, "python", f"jobs/{job}.py", *flags)
        assert done.returncode == 0, f"{job}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
        check_answer(job, done.stdout)
    check_files(shared)
