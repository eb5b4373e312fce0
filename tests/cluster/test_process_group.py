"""The process group of the workers, formed by a controller without torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import GetTimeoutError

from trainyard import TrainConfig
from trainyard.cluster import build_trainer, ray_train
from trainyard.cluster.process_group import GroupBackend, GroupConfig

ROOT = Path(__file__).parents[2]

CONTROLLER = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from ray.train.v2._internal.execution.controller import TrainController
callbacks = pickle.load(sys.stdin.buffer)
assert callbacks[1]._backend_config.backend == "gloo", callbacks
assert "torch" not in sys.modules
"""


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(ray_train, "may_grow", lambda _: False)  # there is no Ray here
    return build_trainer(TrainConfig(), lambda: None, 2, {"CPU": 1.0}, tmp_path, timeout_seconds=7)


def test_the_controller_does_not_import_torch(trainer: Any) -> None:
    """It would take a second, in which no worker starts."""
    done = subprocess.run(
        [sys.executable, "-c", CONTROLLER, str(ROOT / "platform")],
        input=cloudpickle.dumps(trainer._create_default_callbacks()),
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@pytest.mark.parametrize(
    ("backend", "use_gpu", "expected"),
    [
        (None, False, "gloo"),
        (None, True, "nccl"),
        ("cpu:gloo,cuda:nccl", True, "cpu:gloo,cuda:nccl"),
    ],
)
def test_the_backend_of_the_device_unless_a_strategy_names_one(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    backend: str | None,
    use_gpu: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(ray_train, "may_grow", lambda _: False)
    config = TrainConfig(use_gpu=use_gpu)
    built = build_trainer(config, lambda: None, 1, {"CPU": 1.0}, tmp_path, backend=backend)
    assert built.backend_config.backend == expected


class Workers:
    """Two workers that do not answer; records what each is to run."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __len__(self) -> int:
        return 2

    def execute_single(self, rank: int, _: Any) -> tuple[str, int]:
        assert rank == 0
        return "10.0.0.1", 4000

    def execute_single_async(self, rank: int, work: Any, *given: Any) -> Any:
        self.calls.append((work.__name__, given))
        assert given[1] == rank

    def execute_async(self, work: Any, **given: Any) -> Any:
        self.calls.append((work.__name__, tuple(given.items())))


def test_all_workers_join_one_address_and_a_worker_that_hangs_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited = []
    monkeypatch.setattr("ray.get", lambda _, timeout=None: waited.append(timeout))
    config, workers = GroupConfig("gloo", 7), Workers()
    GroupBackend().on_start(workers, config)
    assert workers.calls == [("_join", (config, rank, 2, "10.0.0.1", 4000)) for rank in range(2)]

    def hang(_: Any, timeout: float) -> None:
        waited.append(timeout)
        raise GetTimeoutError

    monkeypatch.setattr("ray.get", hang)
    monkeypatch.setenv("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "3")
    GroupBackend().on_shutdown(workers, config)
    assert workers.calls[-1] == ("_leave", (("several", True),))
    assert waited == [None, 3]
    assert "the process group did not end within 3 seconds" in caplog.text
