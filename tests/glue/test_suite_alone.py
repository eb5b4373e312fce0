"""What the suite decides without Ray: where its runs find things, how many fit, what the table keeps."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainyard.batch_plan import PLAN_VERSION
from trainyard.errors import UserError
from trainyard.glue.config import SuiteConfig
from trainyard.glue.suite import _plan, run_suite, worker_capacity
from trainyard.models import base_digests
from trainyard.storage import SuiteFolder
from trainyard.tasks import get_task


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of the runs have another working directory."""
    (tmp_path / "bert").mkdir()
    monkeypatch.chdir(tmp_path)
    config = SuiteConfig(tasks=("rte",), data_dir="glue", model_name_or_path="bert")
    run = config.run_config("rte", 1)
    assert (run.data_dir, run.model_name_or_path) == (
        str(tmp_path / "glue"),
        str(tmp_path / "bert"),
    )
    named = dataclasses.replace(config, data_dir=None, model_name_or_path="bert-base-uncased")
    assert named.run_config("rte", 1).model_name_or_path == "bert-base-uncased"


@pytest.mark.parametrize(
    ("fields", "nodes", "expected"),
    [
        ({}, [{"CPU": 4.0}, {"CPU": 2.0}], ({"CPU": 1.0}, 6)),
        ({"max_parallel_workers": 2}, [{"CPU": 4.0}], ({"CPU": 1.0}, 2)),
        ({"resources_per_worker": {"CPU": 2}}, [{"CPU": 3.0}, {"CPU": 3.0}], ({"CPU": 2}, 2)),
        ({"use_gpu": True}, [{"CPU": 64.0}, {"CPU": 8.0, "GPU": 2.0}], ({"GPU": 1.0, "CPU": 3.0}, 2)),
        ({"use_gpu": True, "resources_per_worker": {"CPU": 2}}, [{"CPU": 8.0, "GPU": 1.0}],
         ({"GPU": 1.0, "CPU": 2}, 1)),
    ],
)  # fmt: skip
def test_only_so_many_workers_as_the_nodes_hold(
    fields: dict[str, Any], nodes: list[dict[str, float]], expected: Any
) -> None:
    """Ray gives a run up whose workers find no node, however much is free on all of them together."""
    suite = SuiteConfig(**fields)
    assert worker_capacity(suite, suite.run_config("rte", 1), nodes) == expected


def test_a_worker_that_fits_nowhere_is_refused() -> None:
    config = SuiteConfig(resources_per_worker={"CPU": 4})
    with pytest.raises(
        UserError,
        match=r"workers with 4 CPU each do not fit: .* at most 3 CPU on one, enough for 0",
    ):
        worker_capacity(config, config.run_config("rte", 1), [{"CPU": 3.0}, {"CPU": 3.0}])


def finish(config: SuiteConfig) -> None:
    """Write the folders of finished runs."""
    for task in config.tasks:
        run, judged = config.run_config(task, 1), get_task(task).evaluation_splits
        data = Path(str(config.data_dir)) / task
        data.mkdir(parents=True, exist_ok=True)
        for split in ("train", *judged):
            pq.write_table(pa.table({"label": [0]}), data / f"{split}.parquet")
        metrics = {split: {"accuracy": 0.5} for split in judged}
        done = {
            "run": run.run_name, "task": task, "score": 0.5, "metrics": metrics, "seconds": 9.0,
            "intervals": {split: {"accuracy": [0.4, 0.6]} for split in metrics}, "model": "",
            "best_step": 1, "steps": 1, "train_samples_per_second": 1.0, "padding_efficiency": 1.0,
            "truncated_rows": {}, "rows": {},
        }  # fmt: skip
        folder = config.folder / str(run.run_name)
        (folder / "model").mkdir(parents=True)
        (folder / "model/model.safetensors").touch()
        (folder / "run.json").write_text(
            json.dumps(
                {
                    "name": run.run_name,
                    "config": dataclasses.asdict(run),
                    "plan_version": PLAN_VERSION,
                    "status": "finished",
                    "result": done,
                }
            )
        )


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuiteConfig:
    """A suite of RTE and MNLI whose runs are finished and in the table; no Ray is started."""
    monkeypatch.setattr("trainyard.glue.suite.ray_session", lambda *_: contextlib.nullcontext())
    config = SuiteConfig(
        tasks=("mnli", "rte"),
        seeds=(1,),
        data_dir=str(tmp_path / "data"),
        storage_path=str(tmp_path),
    )
    finish(config)
    run_suite(config)
    return config


def test_the_table_is_kept_when_what_it_is_made_of_cannot_be_read(finished: SuiteConfig) -> None:
    table = (finished.folder / "glue.json").read_bytes()
    with pytest.raises(UserError, match="has rte without --warm-start, which this command changes"):
        run_suite(dataclasses.replace(finished, warm_start=True))
    data = Path(str(finished.data_dir))
    data.rename(data.with_name("elsewhere"))
    with pytest.raises(
        UserError, match=r"mnli-seed-1 is in the table of suite 'glue', which stays"
    ):
        run_suite(finished)
    data.with_name("elsewhere").rename(data)
    record = finished.folder / "rte-seed-1/run.json"
    record.write_text("{")
    with pytest.raises(
        UserError, match=r"is damaged; use rm -r \S*/rte-seed-1 to start this run anew"
    ):
        run_suite(finished)
    assert (finished.folder / "glue.json").read_bytes() == table


def test_a_warm_start_goes_stale_with_its_source(finished: SuiteConfig) -> None:
    """Its result is of a model that is gone: not kept in silence, and asked again after a retraining."""
    warm = dataclasses.replace(finished, warm_start=True, run_name="warm")
    finish(warm)
    source, run = (warm.folder / name for name in ("mnli-seed-1", "rte-seed-1-from-mnli"))
    (source / "model/config.json").write_text("{}")
    record = json.loads((run / "run.json").read_text())
    record |= base_digests(str(source / "model"))
    (run / "run.json").write_text(json.dumps(record))
    run_suite(warm)
    table = (warm.folder / "glue.json").read_bytes()
    (source / "model/model.safetensors").write_bytes(b"other weights")
    with pytest.raises(
        UserError,
        match=r"the base weights of run 'rte-seed-1-from-mnli' .* have changed .*; use rm -r "
        r"\S*/rte-seed-1-from-mnli to start this run anew, or choose another --run-name; the table",
    ):
        run_suite(warm)
    assert (warm.folder / "glue.json").read_bytes() == table
    (source / "run.json").unlink()
    configs = {
        path.name: warm.run_config(task, 1) for task, path in (("mnli", source), ("rte", run))
    }
    outcomes, schedule = _plan(warm, configs, set(), SuiteFolder(warm.folder))
    assert not outcomes.finished
    assert [job.after for job in schedule.waiting] == [None, "mnli-seed-1"]


def test_a_run_that_failed_is_said_before_a_submission_that_lacks_it(
    finished: SuiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished.folder / "glue.json").unlink()
    (finished.folder / "rte-seed-1/run.json").write_text("{")
    monkeypatch.setattr("trainyard.glue.suite.train_runs", lambda *_: None)
    monkeypatch.setattr(
        "trainyard.glue.suite.write_submission",
        lambda *_: {"zip": "x", "faults": ["RTE.tsv is missing"]},
    )
    config = dataclasses.replace(finished, submission=True)
    with pytest.raises(UserError, match="1 of 2 runs failed, rte-seed-1 of them"):
        run_suite(config)
    shutil.rmtree(finished.folder / "rte-seed-1")
    with pytest.raises(UserError, match="the leaderboard would refuse x: 1 fault"):
        run_suite(config)
