"""`fit` on Ray: worker counts, lost workers and drivers, second runs, what is left in the folder."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.assassin import kill_at
from support.runs_locally import run_locally, weights_hash
from support.tiny import read_lines, write_task
from training.test_loop import LAST_STEP, check_each_row_once_per_epoch

from trainyard import TrainConfig, UserError, fit
from trainyard.storage import lease as leases
from trainyard.storage.folder import RunFolder
from trainyard.storage.stopwatch import time_ledger
from trainyard.training.driver.result import outcome_of_finished

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    storage = str(tmp_path_factory.mktemp("runs"))
    return dataclasses.replace(small_run, storage_path=storage, resources_per_worker={"CPU": 1})


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_lines(folder / "metrics.jsonl") if "loss" in line]


@pytest.fixture(scope="module")
def timed(cluster: Any, base: TrainConfig) -> dict[int, tuple[Path, float]]:  # noqa: ARG001
    """The same run by 1 and 4 workers, and the seconds that each took; two are killed, see below."""
    found = {}
    for count in (1, 4):
        config = dataclasses.replace(base, run_name=f"workers-{count}", num_workers=count)
        started = time.monotonic()
        result = fit(config)
        seconds = time.monotonic() - started
        assert result.steps == LAST_STEP
        assert result.chosen_on == ["validation"]
        found[count] = Path(config.storage_path) / f"workers-{count}", seconds
    return found


@pytest.fixture(scope="module")
def by_workers(timed: dict[int, tuple[Path, float]]) -> dict[int, Path]:
    return {count: folder for count, (folder, _) in timed.items()}


def test_worker_count_does_not_change_a_bit(by_workers: dict[int, Path]) -> None:
    one = losses(by_workers[1])
    assert len(one) == LAST_STEP
    assert losses(by_workers[4]) == one
    assert len({weights_hash(RunFolder(folder), LAST_STEP) for folder in by_workers.values()}) == 1


def test_each_row_trains_once_per_epoch_at_any_worker_count(by_workers: dict[int, Path]) -> None:
    for count, folder in by_workers.items():
        check_each_row_once_per_epoch(folder, 90, 3)
        ranks = {path.name.split("-rank-")[1][0] for path in folder.glob("ledger/*")}
        assert ranks == {str(rank) for rank in range(count)}


def test_worker_count_does_not_change_the_metrics(by_workers: dict[int, Path]) -> None:
    found = [
        [line for line in read_lines(folder / "metrics.jsonl") if "split" in line]
        for folder in by_workers.values()
    ]
    assert found[0] == found[1]


def test_the_time_of_a_run_is_accounted_for(timed: dict[int, tuple[Path, float]]) -> None:
    for count, (folder, seconds) in timed.items():
        run, progress = RunFolder(folder).read(), RunFolder(folder).progress()
        found = time_ledger(run, progress)
        assert sum(found.values()) == pytest.approx(seconds, rel=0.02)
        assert run["result"]["seconds"] == pytest.approx(seconds, rel=0.02)
        assert sum(progress["seconds"].values()) < run["seconds"]["training"]
        assert {"start_up", "workers", "compute", "evaluation", "checkpoint", "export"} <= set(
            found
        )
        assert ("sync" in found) >= (count > 1)


def test_a_run_records_the_use_of_its_node_and_what_the_driver_said(
    by_workers: dict[int, Path],
) -> None:
    for folder in by_workers.values():
        rows = read_lines(folder / "usage.jsonl")
        assert rows
        assert all(row["memory_bytes"] > row["worker_memory_bytes"] > 0 for row in rows)
        assert all(0 <= row["cpu_percent"] <= 100 for row in rows)
        assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
        log = (folder / "log.txt").read_text().splitlines()
        assert log[0].endswith(" started")
        assert log[-1].endswith(" ended")


def test_the_model_is_plain_transformers(by_workers: dict[int, Path]) -> None:
    from transformers import pipeline

    folder = by_workers[1]
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        "README.md", "config.json", "metrics.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    classify = pipeline("text-classification", model=str(folder / "model"))
    answer = classify({"text": "baa bae", "text_pair": "bai"})
    assert answer["label"] in {"equivalent", "not_equivalent"}
    settings = json.loads((folder / "model/config.json").read_text())
    assert settings["id2label"] == {"0": "not_equivalent", "1": "equivalent"}
    assert settings["problem_type"] == "single_label_classification"
    card = (folder / "model/README.md").read_text()
    assert "| validation | f1 |" in card
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data_fingerprint"] in card
    first = record["examples"][0]
    assert sorted(first) == ["label", "text", "text_pair"]
    assert first["label"] in settings["label2id"]
    assert set(record["versions"]) >= {"ray", "torch", "transformers", "trainyard", "commit"}


def test_a_finished_run_is_not_done_again(
    by_workers: dict[int, Path], base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (by_workers[4] / "model/model.safetensors").stat().st_mtime_ns
    for work in ("prepare", "run_workers"):
        monkeypatch.setattr(f"trainyard.training.driver.fit.{work}", None)  # a call would fail
    result = fit(dataclasses.replace(base, run_name="workers-4", num_workers=1))
    assert result.run == "workers-4"
    assert (by_workers[4] / "model/model.safetensors").stat().st_mtime_ns == before


def test_a_finished_run_keeps_no_optimizer_state_and_exports_a_lost_model_again(
    cluster: Any,  # noqa: ARG001
    base: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = dataclasses.replace(
        base, run_name="lost-model", max_steps=3, save_steps=2, keep_optimizer_state=False
    )
    result = fit(config)
    folder = RunFolder(Path(config.storage_path) / "lost-model")
    assert folder.store().steps() == [2, 3]
    assert not list(folder.checkpoints.glob("*/optimizer*"))
    model = Path(result.model)
    before = (model / "model.safetensors").read_bytes()
    metrics = folder.metrics()
    shutil.rmtree(model)
    monkeypatch.setattr("trainyard.training.driver.fit.run_workers", None)  # trains nothing
    again = fit(config)
    assert (model / "model.safetensors").read_bytes() == before
    assert dataclasses.replace(again, seconds=0, time_ledger={}) == dataclasses.replace(
        result, seconds=0, time_ledger={}
    )
    assert folder.metrics() == metrics
    assert folder.read()["status"] == "finished"


def test_a_driver_reads_no_checkpoint_of_an_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers read it; in a bucket the driver would download it for nothing."""
    folder = RunFolder(tmp_path)
    folder.create()
    folder.update(status="stopped")
    monkeypatch.setattr(RunFolder, "store", lambda _: pytest.fail("a checkpoint is read"))
    assert outcome_of_finished(folder) is None


def test_another_config_under_the_same_name_is_refused(
    by_workers: dict[int, Path], base: TrainConfig
) -> None:
    assert by_workers
    with pytest.raises(UserError, match=r"started with another config \(seed 42 -> 7\)"):
        fit(dataclasses.replace(base, run_name="workers-4", seed=7))


def test_a_worker_killed_in_epoch_2_costs_nothing_but_time(
    by_workers: dict[int, Path], base: TrainConfig
) -> None:
    """Two workers give the bits of one; they take both places, which the next attempt needs again."""
    config = dataclasses.replace(
        base,
        run_name="lost",
        num_workers=2,
        resources_per_worker={"CPU": 1, "place": 1},
        save_steps=1,
    )
    folder = RunFolder(Path(config.storage_path) / config.resolved_run_name)
    with kill_at(folder, 8, "RayTrainWorker"):
        fit(config)
    assert weights_hash(folder, LAST_STEP) == weights_hash(RunFolder(by_workers[1]), LAST_STEP)
    assert read_lines(folder.path / "metrics.jsonl") == read_lines(by_workers[1] / "metrics.jsonl")
    check_each_row_once_per_epoch(folder.path, 90, 3)
    attempts = {path.name for path in folder.ledger.glob("*rank-0*")}
    assert len(attempts) == 2


@pytest.mark.long
def test_a_failure_that_repeats_is_reported_and_not_tried_for_ever(
    cluster: Any,  # noqa: ARG001
    base: TrainConfig,
) -> None:
    config = dataclasses.replace(
        base, run_name="repeats", resources_per_worker={"CPU": 1}, max_failures=5, ledger=True
    )
    folder = Path(config.storage_path) / "repeats"
    folder.mkdir()
    (folder / "ledger").write_text("a file where the loop wants a folder")
    with pytest.raises(UserError, match=r"the same failure twice, worker 0: .*FileExistsError"):
        fit(config)
    assert (folder / "error.txt").read_text()
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_too_many_workers_are_refused_at_once(cluster: Any, base: TrainConfig) -> None:  # noqa: ARG001
    config = dataclasses.replace(
        base, num_workers=2, resources_per_worker={"CPU": 3}, run_name="crowd"
    )
    with pytest.raises(UserError, match=r"2 with 3 CPU each do not fit: .* 4 CPU .* enough for 1"):
        fit(config)


def job(config: TrainConfig) -> tuple[list[str], dict[str, str]]:
    """The command line of `config`, and an environment in which it finds the package."""
    flags = []
    for name in ("task", "data_dir", "model_name_or_path", "storage_path", "run_name",
                 "max_length", "train_batch_size", "per_device_train_batch_size",
                 "learning_rate", "logging_steps", "num_train_epochs", "save_steps"):  # fmt: skip
        value = getattr(config, name)
        flags += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    command = [sys.executable, str(ROOT / "jobs/train.py"), *flags, "--ledger",
               "--resources-per-worker", "CPU", "1", "--keep-optimizer-state"]  # fmt: skip
    return command, {**os.environ, "PYTHONPATH": str(ROOT / "platform")}


def wait_for_step(folder: RunFolder, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240  # five processes start, on a machine that may be busy
    while folder.progress().get("step", 0) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("asked_to_stop", [False, pytest.param(True, marks=pytest.mark.long)])
def test_driver_killed_or_asked_to_stop_then_the_same_command(
    cluster: Any, base: TrainConfig, *, asked_to_stop: bool
) -> None:
    """SIGKILL of the driver, the same command, perhaps SIGTERM and again the command: the same weights.

    The run is long, for a worker of the killed driver can live on for a second or two. The second
    command joins a Ray that is there, the others start one.
    """
    epochs, last_step = 20, 120
    config = dataclasses.replace(
        base, run_name=f"driver-{asked_to_stop}", save_steps=1, num_train_epochs=epochs
    )
    _, undisturbed = run_locally(
        dataclasses.replace(config, run_name=f"undisturbed-{asked_to_stop}", save_steps=None)
    )
    folder = RunFolder(Path(config.storage_path) / config.resolved_run_name)
    command, environment = job(config)
    joined = [*command, "--address", cluster.get_runtime_context().gcs_address]
    options: Any = {"env": environment, "text": True, "start_new_session": True,
                    "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}  # fmt: skip

    first = subprocess.Popen(command, **options)
    wait_for_step(folder, 1, first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()

    if asked_to_stop:
        claim = folder.checkpoints / "attempt.json"
        claimed_by_first = claim.read_text()
        second = subprocess.Popen(joined, **options)
        while claim.read_text() == claimed_by_first:  # a worker of the first may live on
            assert second.poll() is None, second.communicate()
            time.sleep(0.005)
        os.kill(second.pid, signal.SIGTERM)
        stdout, stderr = second.communicate(timeout=240)
        assert second.returncode == 143, stderr
        assert "is saved at step" in stderr
        assert stdout == ""
        assert json.loads((folder.path / "run.json").read_text())["status"] == "stopped"

    last_command = command if asked_to_stop else joined
    last = subprocess.run(
        last_command, env=environment, capture_output=True, text=True, check=False
    )
    assert last.returncode == 0, last.stderr
    answer = json.loads(last.stdout.splitlines()[-1])
    assert answer["job"] == "train"
    assert answer["score"] == answer["metrics"]["validation"]["f1"]
    assert Path(answer["model"]).is_dir()
    assert weights_hash(folder, last_step) == weights_hash(undisturbed, last_step)
    assert losses(folder.path) == losses(undisturbed.path)
    check_each_row_once_per_epoch(folder.path, 90, epochs)
    assert not (folder.path / "lease.json").exists()


@pytest.mark.parametrize("lost", [pytest.param("gcs_server", marks=pytest.mark.long), "raylet"])
def test_a_local_ray_that_is_killed_is_one_sentence(base: TrainConfig, lost: str) -> None:
    """Ray's own end of the driver comes after some 14 seconds, with a status and no reason."""
    config = dataclasses.replace(base, run_name=f"lost-{lost}", save_steps=1, num_train_epochs=60)
    folder = RunFolder(Path(config.storage_path) / config.resolved_run_name)
    command, environment = job(config)
    driver = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for_step(folder, 2, driver)
    for child in psutil.Process(driver.pid).children(recursive=True):
        if child.name() == lost:
            child.kill()
    stdout, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 2, stderr
    assert '"job"' not in stdout  # Ray writes there that its raylet has ended
    assert f"error: Ray on this machine has ended: its {lost} process was killed" in stderr
    assert "run the same command again to resume" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_signal_to_the_whole_group_lets_the_workers_save(
    base: TrainConfig, number: signal.Signals
) -> None:
    """As `timeout` and Ctrl-C in a terminal send it: to every process of the driver's group."""
    config = dataclasses.replace(
        base, run_name=f"group-{number}", save_steps=1, num_train_epochs=60
    )
    folder = RunFolder(Path(config.storage_path) / config.resolved_run_name)
    command, environment = job(config)
    driver = subprocess.Popen(
        command, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for_step(folder, 2, driver)
    started = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, number)
    stdout, stderr = driver.communicate(timeout=120)
    assert (driver.returncode, stdout) == (128 + number, ""), stderr
    stopped = f"stopped: run {folder.path.name} is saved at step "
    assert stderr.splitlines()[-1].startswith(stopped)
    assert folder.read()["status"] == "stopped"
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_suspended_driver_that_was_succeeded_ends_at_once(
    cluster: Any, base: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers train on until they see the lease; it restarts nothing and changes nothing."""
    epochs, last_step = 60, 360
    config = dataclasses.replace(base, run_name="slept", save_steps=1, num_train_epochs=epochs)
    _, undisturbed = run_locally(dataclasses.replace(config, run_name="awake", save_steps=None))
    folder = RunFolder(Path(config.storage_path) / "slept")
    command, environment = job(config)
    first = subprocess.Popen(
        [*command, "--address", cluster.get_runtime_context().gcs_address], env=environment,
        text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_for_step(folder, 2, first)
        os.kill(first.pid, signal.SIGSTOP)
        monkeypatch.setattr(leases, "EXPIRY_SECONDS", 2.0)
        result = fit(config, patience=60.0)
        record, log = folder.read(), (folder.path / "log.txt").read_text()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    stdout, stderr = first.communicate(timeout=120)
    assert (first.returncode, stdout) == (2, "")
    assert "error: run 'slept' was taken over by another driver" in stderr  # which has ended
    assert stderr.count("taken over") == 1
    assert "restarting" not in stderr
    assert "Traceback" not in stderr
    assert (folder.read(), (folder.path / "log.txt").read_text()) == (record, log)
    assert result.steps == last_step
    assert weights_hash(folder, last_step) == weights_hash(undisturbed, last_step)
    assert losses(folder.path) == losses(undisturbed.path)
    check_each_row_once_per_epoch(folder.path, 90, epochs)


def test_changed_data_under_a_running_name_is_refused(
    by_workers: dict[int, Path], base: TrainConfig, tmp_path: Path
) -> None:
    """A finished run of 90 rows, of which 80 are left; its copy is said to have read them here."""
    data = write_task(tmp_path / "glue", train=80)
    config = dataclasses.replace(base, data_dir=str(data), run_name="changed")
    run = Path(config.storage_path) / "changed"
    shutil.copytree(by_workers[1], run)
    record = json.loads((run / "run.json").read_text())
    record["config"]["data_dir"] = str(data)
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        UserError, match="the data of run 'changed' has changed since it was trained"
    ):
        fit(config)
    # Begun, or even finished, by a version of Trainyard whose steps held other rows.
    for status in ("finished", "stopped"):
        (run / "run.json").write_text(json.dumps({**record, "status": status, "plan_version": 1}))
        with pytest.raises(
            UserError,
            match=r"'changed' was started with another version .* differently \(plan 1, now",
        ):
            fit(config)
    (run / "run.json").write_text(json.dumps({**record, "status": "stopped"}))
    with pytest.raises(
        UserError, match="the data of run 'changed' has changed since it was started"
    ):
        fit(config)


@pytest.mark.long
def test_changed_data_is_trained_on_anew(
    by_workers: dict[int, Path], base: TrainConfig, tmp_path: Path
) -> None:
    data = write_task(tmp_path / "glue", train=80)
    shutil.copytree(by_workers[1], Path(base.storage_path) / "anew")
    fresh = dataclasses.replace(base, data_dir=str(data), run_name="anew", max_steps=1, fresh=True)
    assert fit(fresh).rows == {"train": 80, "validation": 37}


def test_fresh_empties_no_folder_that_is_not_a_run(base: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("mine")
    config = dataclasses.replace(base, storage_path=str(tmp_path), run_name="photos", fresh=True)
    with pytest.raises(
        UserError, match=r"photos holds cat\.jpg but no run\.json, so fresh=True does not"
    ):
        fit(config)
    assert (tmp_path / "photos/cat.jpg").read_text() == "mine"
