"""Options, one Ray for the session, and the tiny model, data and run that tests share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny import write_task, write_tiny_model

from trainyard.config import TrainConfig

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a token would be written to $HOME
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take other tests' cores
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the kill tests, of Ray's dashboard, of GPUs and of the golden files."""
    parser.addoption("--random-kills", type=int, default=1, help="SIGKILLs at random points")
    parser.addoption("--dashboard", action="store_true", help="the tests' Ray has its State API")
    parser.addoption("--kill-seed", type=int, help="draws the points; default: another each time")
    parser.addoption("--device", choices=["cuda", "cpu"], default="cuda", help="of tests/gpu")
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the files of tests/golden"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses the cluster is marked so: the mark cannot be forgotten. Its file comes early.

    Files that use it take the longest: last of all, one of them would keep the other process waiting.
    """
    longest = set()
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")
            longest.add(item.path)
    items.sort(key=lambda item: item.path not in longest)


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> Iterator[Any]:
    """A local Ray with four logical CPUs; never one that is running on the machine already.

    Workers that ask for a `place` each can be two at a time.
    """
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        resources={"place": 2},
        include_dashboard=pytestconfig.getoption("--dashboard"),
        log_to_driver=False,
        object_store_memory=200_000_000,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`write_tiny_model`, once."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mrpc` of 90 training rows: not a multiple of any batch size used, so a step is partial."""
    return write_task(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="session")
def small_run(tiny_model: Path, task_data: Path) -> TrainConfig:
    """Three epochs of six steps, four micro-batches each; every step logged, every row in the ledger."""
    return TrainConfig(
        task="mrpc",
        data_dir=str(task_data),
        model_name_or_path=str(tiny_model),
        max_length=32,
        train_batch_size=16,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        ledger=True,
        keep_optimizer_state=True,  # tests compare it
    )


@pytest.fixture(scope="session")
def every_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A small model of every task, loaded and warm, as a replica holds it."""
    from support.serving_locally import load
    from support.small_models import every_task

    sources = every_task(tmp_path_factory.mktemp("every-task"))
    hosts = {task: load(source, task=task) for task, source in sources.items()}
    yield hosts
    for host in hosts.values():
        host.close()
