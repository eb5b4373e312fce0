"""Sweeps on Ray: what they leave, and how they go on after a kill, a signal and the end of their time."""

import csv
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

import pytest
from support.small_sweeps import folder_of, small_sweep, wait_until_free

from trainyard.command import parse
from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.storage.folder import RunFolder
from trainyard.storage.stopwatch import time_ledger
from trainyard.storage.sweep_folder import SweepFolder, TrialRecord
from trainyard.tuning.conclude import SweepResult
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.sweep import tune

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    return small_sweep(small_run, tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="module")
def undisturbed(cluster: Any, config: SweepConfig) -> SweepResult:
    result = tune(config)
    wait_until_free(cluster, 4)
    return result


def test_what_a_sweep_leaves(undisturbed: SweepResult, config: SweepConfig) -> None:
    folder = folder_of(config)
    known = folder.read()
    assert (known["kind"], known["status"], known["metric"]) == ("sweep", "finished", "f1")
    assert known["max_concurrent_trials"] == 2
    assert known["result"] == json.loads(json.dumps(dataclasses.asdict(undisturbed)))
    assert undisturbed.trials == {"finished": 3}

    confirmation = known["confirmation"]
    assert undisturbed.verdict is confirmation["verdict"] is None  # two seeds are too few
    reasons = (
        "2 seed(s) cannot tell a recipe from its seeds",
        "the winner and the default recipe give one",
    )
    assert confirmation["withheld"].startswith(reasons)
    assert (confirmation["covers"], confirmation["look"]) == ("rows", 1)
    assert confirmation["rows"] == {"searched": 18, "confirmed": 19}
    winner, default = confirmation["winner"], confirmation["default"]
    assert len(winner["scores"]) == len(default["scores"]) == len(confirmation["seeds"]) == 2
    low, high = winner["interval"]
    assert low <= winner["corrected"] <= high
    assert confirmation["difference"]["low"] <= confirmation["difference"]["high"]
    searched = {trial.run.read()["config"]["seed"] for trial in folder.records()}
    assert not searched & set(confirmation["seeds"])
    assert default["hyperparameters"] == {"learning_rate": 1e-3, "weight_decay": 0.0}
    runs = {record.spec.name: record for record in folder.records("confirmation")}
    assert set(runs) == {*winner["runs"], *default["runs"]}
    assert {record.status for record in runs.values()} == {"finished"}

    rows = list(csv.DictReader((folder.path / "trials.csv").open()))
    assert [row["trial"] for row in rows] == ["trial-0000", "trial-0001", "trial-0002"]
    assert [float(row["score"]) for row in rows] == [r.score for r in folder.records()]
    assert json.loads((folder.path / "trials.json").read_text())[0]["status"] == "finished"
    assert len(list(folder.tensorboard.rglob("events.out.tfevents*"))) == 3
    assert not (folder.path / ".tune").exists()


def test_the_best_config_is_one_that_train_takes(
    undisturbed: SweepResult, config: SweepConfig
) -> None:
    best = parse(TrainConfig, ["--config", undisturbed.best_config])
    confirmed = undisturbed.verdict == "worse"
    where = folder_of(config).confirmation if confirmed else folder_of(config).trials
    name = "default-seed-0" if confirmed else undisturbed.best_trial
    record = RunFolder(where / name).read()
    assert best.identity() == record["identity"]
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(undisturbed.model)
    stored = load_file(Path(record["result"]["model"]) / "model.safetensors")
    assert all((model.state_dict()[key] == value).all() for key, value in stored.items())


def test_processes_are_kept_and_data_is_tokenized_once(
    undisturbed: SweepResult, config: SweepConfig
) -> None:
    folder = folder_of(config)
    started = {trial.spec.name: trial.run.read()["startup_seconds"] for trial in folder.records()}
    assert undisturbed.trials == {"finished": 3}
    assert started["trial-0002"] < max(started["trial-0000"], started["trial-0001"]) / 2
    for trial in folder.records():  # the ledger of each, imports of the first in a process included
        known = trial.run.read()
        ledger = time_ledger(known, trial.run.progress())
        wall = known["startup_seconds"] + known["loop_seconds"] + ledger.get("verdict", 0.0)
        assert sum(ledger.values()) >= 0.98 * wall
    tables = [path for path in (folder.path.parent / ".cache").iterdir() if path.is_dir()]
    assert len(tables) == 3  # train, and the halves of validation
    assert not list(folder.path.rglob("ids.bin"))


def test_a_finished_sweep_is_not_done_again_but_can_be_given_more(
    cluster: Any, undisturbed: SweepResult, config: SweepConfig
) -> None:
    before = [trial.run.read()["ended"] for trial in folder_of(config).records()]
    assert tune(config) == undisturbed
    assert [trial.run.read()["ended"] for trial in folder_of(config).records()] == before
    more = tune(dataclasses.replace(config, num_trials=4, confirm_seeds=0))
    assert more.trials == {"finished": 4}
    assert more.verdict is None
    assert [trial.run.read()["ended"] for trial in folder_of(config).records()][:3] == before
    wait_until_free(cluster, 4)


def test_a_sweep_that_planned_its_batches_otherwise_is_another(
    undisturbed: SweepResult, config: SweepConfig
) -> None:
    """As one begun before an upgrade: half of its trials would have had other steps."""
    old = dataclasses.replace(config, run_name="old")
    assert undisturbed.trials
    known = {**folder_of(config).read(), "identity": "before", "plan_version": 1}
    folder_of(old).path.mkdir()
    (folder_of(old).path / "sweep.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"'old' was started with another version .* \(plan 1, now"):
        tune(old)


@pytest.mark.long
def test_the_time_of_a_sweep_is_kept_over_its_attempts(
    cluster: Any, undisturbed: SweepResult, config: SweepConfig
) -> None:
    """A second attempt has what is left of `--max-seconds`; what runs then is saved, not lost."""
    timed = dataclasses.replace(config, run_name="timed", num_trials=100, confirm_seeds=0)
    folder = folder_of(timed)
    shutil.copytree(folder_of(config).path, folder.path)
    already = sum(undisturbed.trials.values())
    known = folder.read()
    assert known["search_seconds"] < known["seconds"]  # the confirmation was none of the search
    first = tune(dataclasses.replace(timed, max_seconds=known["search_seconds"] + 4))
    assert first.trials["finished"] >= already
    assert already < sum(first.trials.values()) < 100
    cut_off = [trial for trial in folder.records() if trial.status != "finished"]
    assert cut_off
    for trial in cut_off:  # nobody judged it, and it goes on where it was
        assert trial.status in ("stopped", "waiting")
        assert trial.status == "waiting" or list(trial.run.checkpoints.glob("step-*"))
    assert folder.read()["search_seconds"] >= known["search_seconds"] + 4
    assert tune(dataclasses.replace(timed, max_seconds=1.0)).trials == first.trials
    begun = sum(first.trials.values())
    assert tune(dataclasses.replace(timed, num_trials=begun)).trials == {"finished": begun}
    wait_until_free(cluster, 4)


@pytest.mark.long
def test_a_space_that_leaves_out_the_default_recipe_is_confirmed_against_it(
    cluster: Any, config: SweepConfig
) -> None:
    """Its own length is that of no trial, so only the confirmation reads that tokenization."""
    elsewhere = dataclasses.replace(
        config, run_name="elsewhere", num_trials=2, set=(("max_length=choice:8,16",),)
    )
    tune(elsewhere)
    known = folder_of(elsewhere).read()
    assert known["confirmation"]["default"]["runs"] == ["default-seed-0", "default-seed-1"]
    assert known["confirmation"]["default"]["hyperparameters"]["max_length"] == 32
    assert known["reason"] is None
    wait_until_free(cluster, 4)


def flags(config: SweepConfig, **changed: str) -> list[str]:
    names = ("task", "data_dir", "model_name_or_path", "storage_path", "max_length", "num_trials",
             "train_batch_size", "per_device_train_batch_size", "learning_rate", "logging_steps",
             "num_train_epochs", "scheduler", "max_concurrent_trials", "confirm_top",
             "confirm_seeds")  # fmt: skip
    values = {**{name: str(getattr(config, name)) for name in names}, **changed}
    return [
        "--resources-per-worker", "CPU", "1", "--set", *config.overrides,
        *(part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)),
    ]  # fmt: skip


def command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    return [sys.executable, str(ROOT / "jobs/tune.py"), *arguments], environment


@pytest.mark.long
def test_driver_killed_in_mid_sweep_then_the_same_command(
    undisturbed: SweepResult, config: SweepConfig
) -> None:
    """SIGKILL when the first trial has finished: it is kept, the rest run, the winner is the same."""
    line, environment = command(*flags(config, run_name="killed"))
    folder = SweepFolder(Path(config.storage_path) / "killed")
    options: Any = {"env": environment, "text": True, "start_new_session": True,
                    "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}  # fmt: skip
    first = subprocess.Popen(line, **options)
    deadline = time.monotonic() + 200
    while not (done := [r for r in folder.records() if r.status == "finished"]):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    kept = {trial.spec.name: trial.run.metrics() for trial in done}
    stamps = {
        trial.spec.name: (trial.run.path / "metrics.jsonl").stat().st_mtime_ns for trial in done
    }
    assert json.loads((folder.path / "sweep.json").read_text())["status"] == "running"

    last = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    answer = json.loads(last.stdout.splitlines()[-1])
    assert answer["job"] == "tune"
    assert answer["best_trial"] == undisturbed.best_trial
    assert answer["best_hyperparameters"] == dict(undisturbed.best_hyperparameters)
    assert (answer["score"], answer["interval"]) == (undisturbed.score, undisturbed.interval)
    for trial in folder.records():
        if trial.spec.name in kept:
            assert trial.run.metrics() == kept[trial.spec.name]
            stamp = (trial.run.path / "metrics.jsonl").stat().st_mtime_ns
            assert stamp == stamps[trial.spec.name]
    assert not (folder.path / "lease.json").exists()


@pytest.mark.long
def test_asked_to_stop_in_search_and_confirmation_then_the_same_command(
    undisturbed: SweepResult, config: SweepConfig
) -> None:
    """SIGTERM twice: what ran is saved and not judged, and the end is that of the undisturbed sweep."""
    line, environment = command(*flags(config, run_name="asked"))
    folder = SweepFolder(Path(config.storage_path) / "asked")
    options: Any = {"env": environment, "text": True, "stdout": subprocess.PIPE,
                    "stderr": subprocess.PIPE}  # fmt: skip

    def records() -> list[TrialRecord]:
        return [*folder.records(), *folder.records("confirmation")]

    for kind in ("search", "confirmation"):
        driver = subprocess.Popen(line, **options)
        deadline = time.monotonic() + 200
        while not any(
            r.spec.kind == kind and r.status == "running" and r.run.progress() for r in records()
        ):
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=100)
        assert driver.returncode == 128 + signal.SIGTERM, said
        assert "is saved; the same command resumes it" in said
        assert folder.read()["status"] == "stopped"
        assert {r.status for r in records()} <= {"finished", "stopped", "waiting"}
        assert any(r.status == "stopped" and r.spec.kind == kind for r in records())

    last = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    answer = json.loads(last.stdout.splitlines()[-1])
    assert (answer["verdict"], answer["score"]) == (undisturbed.verdict, undisturbed.score)
    assert answer["trials"] == {"finished": 3}
    assert {r.status for r in records()} == {"finished"}
