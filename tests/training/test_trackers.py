"""Trackers of --report-to, read back from where each of them keeps its runs."""

import json
import os
import shutil
import signal
import struct
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from support.runs_locally import run_locally
from support.serving_locally import free_port

from trainyard.config import TrainConfig, check_packages
from trainyard.errors import UserError
from trainyard.training.worker import trackers
from trainyard.training.worker.trackers import TRACKERS, MLflow, WeightsAndBiases

Curves = dict[str, dict[int, float]]


@pytest.fixture
def config(
    tiny_model: Path, task_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainConfig:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return TrainConfig(
        task="mrpc", data_dir=str(task_data), model_name_or_path=str(tiny_model), max_length=32,
        storage_path=str(tmp_path / "runs"), run_name="run", max_steps=6, eval_steps=3,
        logging_steps=2, report_to=("tensorboard", "mlflow", "wandb"),
    )  # fmt: skip


def in_metrics(run: Path) -> Curves:
    """Curves of metrics.jsonl."""
    found: Curves = defaultdict(dict)
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if "split" in line:
            values = {"loss": line["eval_loss"], **line["metrics"]}
        else:
            values = {key: line[key] for key in ("loss", "learning_rate")}
        for name, value in values.items():
            found[f"{line.get('split', 'train')}/{name}"][line["step"]] = value
    return found


def in_mlflow(uri: str) -> tuple[Any, Curves]:
    """The only run of an MLflow store, and its curves; a step occurs once."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("trainyard")
    (run,) = client.search_runs([experiment.experiment_id])
    found: Curves = {}
    for name in run.data.metrics:
        points = client.get_metric_history(run.info.run_id, name)
        found[name] = {point.step: point.value for point in points}
        assert len(points) == len(found[name])
    return run, found


def in_wandb(run: Path) -> tuple[set[str], Curves]:
    """Identifiers and curves of the offline runs of Weights & Biases below a run."""
    found: Curves = defaultdict(dict)
    ids = set()
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in records(file):
            ids |= {record.run.run_id} - {""}
            row = {
                (item.key or item.nested_key[0]): float(item.value_json)
                for item in record.history.item
            }
            for name in row:
                if "/" in name:
                    found[name][int(row["_step"])] = row[name]
    return ids, found


def records(file: Path) -> Iterator[Any]:
    """Records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    block, header = 2**15, 7
    data, at, parts = file.read_bytes(), header, b""
    while at + header <= len(data):
        left = block - at % block
        if left < header:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + header])
        parts += data[at + header : at + header + size]
        at += header + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def close(found: Curves, expected: Curves) -> bool:
    """Compare curves; Weights & Biases stores numbers in decimals."""
    assert found.keys() == expected.keys()
    return all(found[name] == pytest.approx(expected[name], rel=1e-6) for name in expected)


def test_every_tracker_has_the_curves_of_a_run_that_was_interrupted(config: TrainConfig) -> None:
    outcome, folder = run_locally(config, on_evaluation=lambda: False)
    assert outcome.status == "stopped"
    outcome, _ = run_locally(config)
    assert outcome.status == "finished"
    shutil.rmtree(folder.checkpoints / "step-00000006")  # a killed attempt has logged further
    run_locally(config)
    expected = in_metrics(folder.path)
    assert set(expected) == {
        "train/loss",
        "train/learning_rate",
        "validation/loss",
        "validation/accuracy",
        "validation/f1",
    }
    assert sorted(expected["validation/f1"]) == [3, 6]
    run, found = in_mlflow((folder.path.parent / "mlruns").as_uri())
    assert found == expected
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["learning_rate"] == "5e-05"
    ids, found = in_wandb(folder.path)
    assert len(ids) == 1
    assert close(found, expected)
    assert [*(folder.tensorboard).glob("events*")]


@pytest.mark.long
def test_the_server_of_the_environment_is_used(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    _, folder = run_locally(replace(config, report_to=("mlflow",)))
    assert in_mlflow(uri)[1] == in_metrics(folder.path)
    assert not (folder.path.parent / "mlruns").exists()
    assert not folder.tensorboard.exists()


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """URL of MLflow's own server over a database."""
    if (python := os.environ.get("MLFLOW_PYTHON")) is None:
        pytest.skip("MLFLOW_PYTHON names no Python with all of MLflow; `make test-long` makes one")
    port = free_port()
    command = [
        python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}",
        "--default-artifact-root", str(tmp_path / "artifacts"),
    ]  # fmt: skip
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=tmp_path, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # its workers, too
            process.wait(60)


@pytest.mark.long
def test_a_server_has_the_curves_of_a_run_that_was_interrupted(
    config: TrainConfig, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    config = replace(config, report_to=("mlflow",))
    outcome, _ = run_locally(config, on_evaluation=lambda: False)
    assert outcome.status == "stopped"
    outcome, folder = run_locally(config)
    assert outcome.status == "finished"
    assert not [note for note in outcome.notes if "mlflow" in note]
    run, found = in_mlflow(mlflow_server)
    assert found == in_metrics(folder.path)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["learning_rate"] == "5e-05"
    assert not (folder.path.parent / "mlruns").exists()


def test_a_run_is_found_in_any_of_several_experiments_of_one_name(config: TrainConfig) -> None:
    """Trials that start together can each create the experiment in a file store."""
    config = replace(config, report_to=("mlflow",))
    outcome, folder = run_locally(config, on_evaluation=lambda: False)
    assert outcome.status == "stopped"
    store = folder.path.parent / "mlruns"
    (own,) = (path.parent.parent for path in store.glob("*/*/meta.yaml"))
    meta = own / "meta.yaml"
    for other in range(100, 110):
        (store / str(other)).mkdir()
        text = meta.read_text().replace(own.name, str(other))
        (store / str(other) / "meta.yaml").write_text(text)
    outcome, _ = run_locally(config)
    assert outcome.status == "finished"
    (run,) = store.glob("*/*/meta.yaml")
    assert run.parent.parent == own
    others = replace(config, run_name="another")
    run_locally(others)
    (second,) = set(store.glob("*/*/meta.yaml")) - {run}
    assert second.parent.parent.name == "100"  # all are as old


def test_a_tracker_that_fails_does_not_end_the_run(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(MLflow, "log", refuse)
    outcome, folder = run_locally(replace(config, report_to=("mlflow", "tensorboard")))
    assert outcome.status == "finished"
    (note,) = [note for note in outcome.notes if "mlflow" in note]
    assert note.startswith("warning: --report-to mlflow failed at step 2 (the server is gone)")
    assert [*folder.tensorboard.glob("events*")]
    monkeypatch.setattr(trackers, "TRACKERS", {**TRACKERS, "wandb": refuse})
    with pytest.raises(UserError, match=r"--report-to wandb cannot be used \(the server is gone\)"):
        trackers.open_trackers(replace(config, report_to=("wandb",)), folder, 0)


def test_a_tracker_that_fails_at_its_end_does_not_fail_the_trained_run(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those after it are closed all the same."""
    closed: list[object] = []

    def refuse(*_: Any) -> None:
        raise ConnectionError("the server is gone")

    tensorboard = TRACKERS["tensorboard"]
    assert tensorboard is not None
    close = tensorboard.close
    monkeypatch.setattr(MLflow, "close", refuse)
    monkeypatch.setattr(tensorboard, "close", lambda self: closed.append(close(self)))
    outcome, _ = run_locally(replace(config, report_to=("mlflow", "tensorboard")))
    assert outcome.status == "finished"
    assert len(closed) == 1
    (note,) = [note for note in outcome.notes if "mlflow" in note]
    assert note.startswith("warning: --report-to mlflow was not closed (the server is gone)")


def test_a_tracker_that_is_not_installed_is_named(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_packages(config)
    with pytest.raises(UserError, match="needs a server; set MLFLOW_TRACKING_URI"):
        check_packages(replace(config, storage_path="s3://bucket/runs"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for name in ("mlflow", "wandb"):
        package = "mlflow-skinny" if name == "mlflow" else name
        with pytest.raises(UserError, match=rf"pip install {package}\), or leave it out"):
            check_packages(replace(config, report_to=(name,)))
    check_packages(replace(config, report_to=("tensorboard", "none")))


def test_trackers_do_not_change_the_identity(config: TrainConfig) -> None:
    assert replace(config, report_to=("none",)).identity() == config.identity()
    names = get_args(get_args(get_type_hints(TrainConfig)["report_to"])[0])
    assert set(names) == set(TRACKERS)
    assert WeightsAndBiases is TRACKERS["wandb"]
