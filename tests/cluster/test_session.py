"""The local Ray of a job, which may end before the job does, and the GPUs that Ray reserves."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from trainyard.cluster import owns_gpu

ROOT = Path(__file__).parents[2]

LOSE_RAY = """
import psutil
from trainyard import TrainConfig
from trainyard.cluster import check_local_ray, ray_session
from trainyard.errors import UserError

check_local_ray()  # without Ray
with ray_session(TrainConfig(task="demo")):
    check_local_ray()
    (raylet,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
    raylet.kill()
    psutil.wait_procs([raylet], timeout=10)
    try:
        check_local_ray()
    except UserError as error:
        print(error, flush=True)
"""


def test_a_local_ray_that_ended_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOSE_RAY],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), "RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    sentence = (
        "Ray on this machine has ended: its raylet process was killed, perhaps because memory was "
        "full; run the same command again to resume"
    )
    assert sentence in done.stdout, done.stderr  # among lines of Ray


WAIT_IN_RAY = """
import ray
from trainyard import TrainConfig
from trainyard.cluster import ray_session

with ray_session(TrainConfig(task="demo")):
    ray.get(ray.remote(lambda: 1).remote())  # so a worker runs
    print("up", flush=True)
    input()
"""


@pytest.mark.parametrize("end", ["ray.shutdown", signal.SIGKILL, signal.SIGTERM])
def test_processes_of_ray_are_outside_the_group_of_the_driver_and_end_with_it(
    end: str | signal.Signals,
) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", WAIT_IN_RAY],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), "RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert driver.stdout is not None
    assert "up" in driver.stdout.readline()
    started = psutil.Process(driver.pid).children(recursive=True)
    assert {"raylet", "gcs_server"} < {process.name() for process in started}
    agents = {process.pid for process in started if process.name().endswith("Agent")}
    assert driver.pid not in {os.getpgid(process.pid) for process in started}
    if isinstance(end, signal.Signals):
        os.killpg(driver.pid, end)
        driver.communicate(timeout=60)
    else:
        driver.communicate("\n", timeout=60)
    if end == signal.SIGKILL:  # Ray's agents wait for a killed GCS for a minute, then end
        started = [process for process in started if process.pid not in agents]
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    ("in_ray", "reserved", "owned"), [(False, [], True), (True, [], False), (True, ["0"], True)]
)
def test_a_process_owns_the_gpus_that_ray_reserved_for_it(
    in_ray: bool, reserved: list[str], owned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": reserved})
    monkeypatch.setattr("ray.is_initialized", lambda: in_ray)
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    assert owns_gpu() is owned
