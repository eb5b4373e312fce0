"""The suite on a small cluster."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.tiny import write_task

from trainyard.errors import Interrupted, UserError
from trainyard.fleet import LongestFirst
from trainyard.glue.config import SuiteConfig
from trainyard.glue.suite import Outcomes, job_of, run_suite
from trainyard.storage.folder import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tasks": ("ax",)}, "task 'ax' is not one of the suite's"),
        ({"tasks": ("rte", "rte")}, "^tasks is rte rte; name each once"),
        ({"seeds": ()}, "^seeds is empty"),
        ({"tasks": ("rte",), "warm_start": True}, "starts rte from mnli, which is not among"),
        ({"max_parallel_workers": 0}, "^max_parallel_workers is 0"),
        (
            {"tasks": ("cola",), "warm_start": True},
            "^warm_start is for mrpc, stsb, rte, of which none",
        ),
        ({"run_name": "../x"}, "^run_name is '../x'; it must be of letters"),
        ({"seeds": (1, -1)}, "^seed is -1; it must be between 0"),
        ({"submission": True, "check_submission": "x.zip"}, "only looks at one; give one of them"),
    ],
)
def test_mistakes(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SuiteConfig(**fields)


def test_a_warm_start_waits_for_its_source_and_fails_with_it(tmp_path: Path) -> None:
    config = SuiteConfig(
        tasks=("mnli", "rte", "cola"), seeds=(7,), warm_start=True, storage_path=str(tmp_path)
    )
    run = config.run_config("rte", 7)
    assert run.resolved_run_name == "rte-seed-7-from-mnli"
    assert run.model_name_or_path == str(tmp_path / "glue/mnli-seed-7/model")
    assert config.run_config("cola", 7).model_name_or_path == config.model_name_or_path
    jobs = [job_of(config, config.run_config(task, 7)) for task in config.tasks]
    assert [job.after for job in jobs] == [None, "mnli-seed-7", None]
    assert [job.cost for job in jobs] == [392_704, 3 * 2_496, 3 * 8_552]  # whole batches
    for outcome in (Outcomes(failed={"mnli-seed-7": "no data"}), Outcomes(stopped=["mnli-seed-7"])):
        schedule = LongestFirst(jobs[1:])
        outcome.drop(schedule.end("mnli-seed-7", finished=False))
        assert [job.name for job in schedule.waiting] == ["cola-seed-7"]
        if outcome.failed:
            reason = "it starts from mnli-seed-7, which failed"
            assert outcome.failed["rte-seed-7-from-mnli"] == reason
        else:  # its node left, and the suite was not asked to stop
            assert outcome.stopped == ["mnli-seed-7", "rte-seed-7-from-mnli"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> SuiteConfig:
    """Two tasks, one of them without data, and two seeds: two epochs of eight steps."""
    return SuiteConfig(
        tasks=("mrpc", "cola"),
        seeds=(1, 2),
        data_dir=str(write_task(tmp_path_factory.mktemp("suite-data"), train=60, validation=30)),
        model_name_or_path=str(tiny_model),
        storage_path=str(tmp_path_factory.mktemp("suite-runs")),
        max_length=32,
        max_steps=16,
        max_parallel_workers=3,
    )


def table_of(config: SuiteConfig) -> dict[str, Any]:
    found = json.loads((config.folder / "glue.json").read_text())
    return {row["task"]: row for row in found["tasks"]}


@pytest.fixture(scope="module")
def first_pass(cluster: Any, suite: SuiteConfig) -> dict[str, Any]:  # noqa: ARG001
    """The table of a suite of which one task's data and the record of a run are damaged."""
    train = Path(str(suite.data_dir)) / "cola/train.parquet"
    train.parent.mkdir()
    train.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    record = suite.folder / "mrpc-seed-2/run.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    with pytest.raises(
        UserError, match=r"3 of 4 runs failed, mrpc-seed-2 of them: .*run.json is damaged"
    ):
        run_suite(suite)
    failed = table_of(suite)["cola"]["failed"]
    assert set(failed) == {"cola-seed-1", "cola-seed-2"}
    assert "cola/train.parquet is not a Parquet file" in failed["cola-seed-1"]
    record.unlink()
    with pytest.raises(UserError, match="2 of 4 runs failed, cola-seed-1 of them"):
        run_suite(suite)
    return table_of(suite)


def test_a_failing_task_takes_no_other_along_and_nothing_is_done_twice(
    suite: SuiteConfig, first_pass: dict[str, Any]
) -> None:
    before = first_pass
    assert [before[task]["seeds"] for task in suite.tasks] == [[1, 2], []]
    stamps = {path: path.stat().st_mtime_ns for path in suite.folder.glob("mrpc-*/run.json")}
    _add_cola(Path(str(suite.data_dir)))
    found = run_suite(suite)
    assert set(found["metrics"]) == {"mrpc", "cola"}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert table_of(suite)["mrpc"] == before["mrpc"]
    again = run_suite(suite)
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    assert "Average of 2 tasks (mrpc, cola)" in (suite.folder / "glue.md").read_text()
    assert "<html" in (suite.folder / "glue.html").read_text()
    _check_the_table_is_kept(suite)


def _check_the_table_is_kept(suite: SuiteConfig) -> None:
    """What would take figures from the finished table, or put others in their place, is refused."""
    table = (suite.folder / "glue.json").read_bytes()

    def refused(sentence: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=sentence):
            run_suite(dataclasses.replace(suite, **changes))
        assert (suite.folder / "glue.json").read_bytes() == table

    refused(r"mrpc-seed-1' was started with another config \(max_steps 16 -> 17\)", max_steps=17)
    refused("the table of suite 'glue' has cola with seed 1, which this command", tasks=("mrpc",))
    train = Path(str(suite.data_dir)) / "mrpc/train.parquet"
    before = train.read_bytes()
    shutil.copy(train.with_name("validation.parquet"), train)
    refused("the data of run 'mrpc-seed-1' has changed since it was trained; choose another")
    train.write_bytes(before)


def _add_cola(folder: Path) -> None:
    """`cola`, of single texts, in place of what is there."""
    shutil.rmtree(folder / "cola")
    import pyarrow.parquet as pq

    for path in (write_task(folder, "cola", train=60, validation=30) / "cola").iterdir():
        table = pq.read_table(path).rename_columns(["sentence", "other", "label", "idx"])
        pq.write_table(table, path)


@pytest.mark.long
def test_killed_in_the_middle_and_done_again(
    cluster: Any, suite: SuiteConfig, tmp_path: Path
) -> None:
    """SIGKILL of the driver while its second run trains: what is finished is kept, the table equal.

    Of 80 steps, judged and saved every eight.
    """
    config = dataclasses.replace(
        suite, tasks=("mrpc",), max_steps=80, max_parallel_workers=1, storage_path=str(tmp_path)
    )
    undisturbed = dataclasses.replace(config, run_name="undisturbed")
    run_suite(undisturbed)
    flags = ["--tasks", "mrpc", "--seeds", "1", "2"]
    for name in ("data_dir", "model_name_or_path", "storage_path", "max_length", "max_steps",
                 "max_parallel_workers"):  # fmt: skip
        flags += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    driver = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs/glue.py"), *flags,
         "--address", cluster.get_runtime_context().gcs_address],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    first, second = (RunFolder(config.folder / name) for name in _first_two(config, driver))
    driver.kill()
    driver.wait()
    assert first.read()["status"] == "finished"
    assert second.read()["status"] == "running"
    stamp = (first.path / "run.json").stat().st_mtime_ns
    spent = sum(second.progress()["seconds"].values())
    run_suite(config)
    assert (first.path / "run.json").stat().st_mtime_ns == stamp
    assert table_of(config)["mrpc"]["metrics"] == table_of(undisturbed)["mrpc"]["metrics"]
    assert second.read()["result"]["seconds"] > spent  # of both attempts


@pytest.mark.long
def test_asked_to_stop_then_the_same_command(
    cluster: Any,  # noqa: ARG001
    suite: SuiteConfig,
    tmp_path: Path,
) -> None:
    """While the first of two runs trains, alone: it is saved, the other one never starts."""
    config = dataclasses.replace(
        suite, tasks=("mrpc",), max_steps=80, max_parallel_workers=1, storage_path=str(tmp_path)
    )
    first, second = (RunFolder(config.folder / f"mrpc-seed-{seed}") for seed in config.seeds)

    def ask() -> None:
        while first.progress().get("step", 0) < 3:
            time.sleep(0.02)
        (config.folder / "stop-request").touch()

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Interrupted, match=r"2 run\(s\) of glue are still to be done"):
        run_suite(config)
    assert first.read()["status"] == "stopped"
    assert not second.path.exists()
    steps = [line["step"] for line in first.metrics()]
    run_suite(config)
    assert table_of(config)["mrpc"]["seeds"] == [1, 2]
    assert [line["step"] for line in first.metrics()][: len(steps)] == steps


def _first_two(config: SuiteConfig, driver: Any) -> tuple[str, str]:
    """Names of the run that finished and of the one that trains, once the latter has a checkpoint."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert driver.poll() is None, "the suite ended before it could be killed"
        folders = {
            path.parent.name: RunFolder(path.parent) for path in config.folder.glob("*/run.json")
        }
        done = [name for name, folder in folders.items() if folder.read()["status"] == "finished"]
        busy = [
            name for name, folder in folders.items()
            if name not in done and list(folder.checkpoints.glob("step-*"))
        ]  # fmt: skip
        if len(done) == 1 and busy:
            return done[0], busy[0]
        time.sleep(0.02)
    raise TimeoutError("no second run got as far as a checkpoint")
