"""The jobs on Ray with a GPU: killed workers, sweeps that share it, answers as on a CPU."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from support import lifted
from support.assassin import kill_at
from support.job_scripts import run
from support.runs_locally import weights_hash
from support.tiny import read_lines, write_task

from trainyard import TrainConfig, fit
from trainyard.storage.folder import RunFolder
from trainyard.storage.stopwatch import time_ledger

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cluster")]
KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"mixed_precision": "bf16"},
    "fsdp": {"strategy": "fsdp"},
    "zero2": {"strategy": "deepspeed"},
}
TASKS = ["mrpc", "rte"]


@pytest.fixture(scope="module")
def base(
    small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory, device: str
) -> TrainConfig:
    data = tmp_path_factory.mktemp("glue")
    for task in TASKS:
        write_task(data, task)
    return dataclasses.replace(
        small_run, data_dir=str(data), storage_path=str(tmp_path_factory.mktemp("runs")),
        use_gpu=device == "cuda",
        resources_per_worker={"CPU": 1, "GPU": 1} if device == "cuda" else {"CPU": 1},
        save_steps=3, num_train_epochs=20, ledger=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def flags(base: TrainConfig) -> list[str]:
    """What all jobs that train share, for trials that share the GPU."""
    share = ["GPU", "0.25"] if base.use_gpu else []
    return ["--model-name-or-path", base.model_name_or_path, "--data-dir", str(base.data_dir),
            "--storage-path", base.storage_path, "--max-length", "32", "--max-steps", "12",
            "--resources-per-worker", "CPU", "1", *share, *on(base)]  # fmt: skip


def on(base: TrainConfig) -> list[str]:
    return ["--use-gpu"] if base.use_gpu else []


@pytest.fixture(scope="module")
def trained(base: TrainConfig) -> dict[str, Path]:
    """The same run on the device and on CPUs."""
    here = dataclasses.replace(base, run_name="here", num_train_epochs=3)
    cpu = dataclasses.replace(here, run_name="cpu", use_gpu=False, resources_per_worker={"CPU": 1})
    return {config.run_name or "": Path(fit(config).model) for config in (here, cpu)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_worker_costs_no_bit(
    base: TrainConfig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not base.use_gpu:
        cloudpickle.register_pickle_by_value(lifted)
        lifted.lift_workers(monkeypatch)
    whole, killed = (
        dataclasses.replace(base, run_name=f"{kind}-{way}", **KINDS[kind])
        for way in ("whole", "killed")
    )
    steps = fit(whole).steps
    folder = RunFolder(Path(base.storage_path) / f"{kind}-killed")
    with kill_at(folder, 20, "RayTrainWorker"):
        fit(killed)
    expected = RunFolder(Path(base.storage_path) / f"{kind}-whole")
    assert weights_hash(folder, steps) == weights_hash(expected, steps)
    spent = time_ledger(expected.read(), expected.progress())
    assert spent["start_up"] < 20


def test_the_doctor_passes(flags: list[str]) -> None:
    assert run("doctor", *flags, "--task", "mrpc")["ok"]


def test_four_trials_share_the_device(base: TrainConfig, flags: list[str]) -> None:
    found = run("tune", *flags, "--task", "mrpc", "--num-trials", "8", "--scheduler", "fifo",
                "--confirm-seeds", "0", "--run-name", "sweep")  # fmt: skip
    assert found
    trials = sorted((Path(base.storage_path) / "sweep/trials").iterdir())
    states = [json.loads((trial / "run.json").read_text())["status"] for trial in trials]
    assert states == ["finished"] * 8


def test_a_suite_runs(flags: list[str]) -> None:
    assert run("glue", *flags, "--tasks", *TASKS, "--seeds", "1", "--run-name", "suite")


def test_the_devices_models_are_alike(base: TrainConfig, trained: dict[str, Path]) -> None:
    found = run("eval", "--model-name-or-path", str(trained["here"]), "--against",
                str(trained["cpu"]), "--data-dir", str(base.data_dir), "--storage-path",
                base.storage_path, "--run-name", "evaluated", "--resources-per-worker", "CPU", "1",
                *(["GPU", "1"] if base.use_gpu else []), *on(base))  # fmt: skip
    assert "not distinguishable" in json.dumps(found) or not base.use_gpu


def test_predictions_are_those_of_a_cpu(
    base: TrainConfig, trained: dict[str, Path], tmp_path: Path
) -> None:
    rows = {}
    for name, more in (("here", on(base)), ("cpu", [])):
        output = tmp_path / f"{name}.jsonl"
        run("predict", "--model-name-or-path", str(trained["here"]), "--input-file",
            f"{base.data_dir}/mrpc/validation.parquet", "--text-column", "sentence1",
            "--text-pair-column", "sentence2", "--output-file", str(output), *more)  # fmt: skip
        rows[name] = read_lines(output)
    for here, cpu in zip(rows["here"], rows["cpu"], strict=True):
        assert here.keys() == cpu.keys()
        for key, value in cpu.items():
            assert here[key] == (
                pytest.approx(value, abs=1e-3) if isinstance(value, float) else value
            )
