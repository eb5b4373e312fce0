"""The local Ray of a job, which may end before the job does, and the GPUs that Ray reserves."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
