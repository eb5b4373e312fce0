"""The doctor: its judgment on made-up nodes, and its look at real ones."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from trainyard import TrainConfig, UserError
from trainyard.doctor.cluster import preflight as preflight_module
from trainyard.doctor.cluster.checks import CHEAP, CHECKS, GIB, Finding, run_checks
from trainyard.doctor.cluster.nodes import Facts, ask, marked
from trainyard.doctor.cluster.preflight import DoctorConfig, examine_cluster, preflight
from trainyard.doctor.cluster.probe import examine

ROOT = Path(__file__).parents[2]


def well() -> dict[str, Facts]:
    """Two nodes in good health."""

    def node(number: int) -> Facts:
        room = {"free": 100 * GIB, "total": 200 * GIB}
        return {
            "address": f"10.0.0.{number}",
            "python": "3.11.2",
            "packages": {"ray": "2.60.0", "torch": "2.13.0"},
            "extras": {"deepspeed": "0.19.8"},
            "trainyard": {"folder": "/x", "digest": "abc"},
            "reads": None, "writes": None, "model": None,
            "disk": room, "temporary": room, "shared_memory": room,
            "clock": {"ahead": 0.01, "uncertainty": 0.02},
            "resources": {"CPU": 4.0},
        }  # fmt: skip

    return {"a": node(1), "b": node(2)}


SHARDED = TrainConfig(strategy="deepspeed", use_gpu=True)


def set_in(*path: str, to: Any) -> Callable[[Facts], None]:
    def change(facts: Facts) -> None:
        part = facts
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = to

    return change


ILLS = {
    "silent": ("nodes", "failure", set_in("fault", to="did not answer in time"),
               "node 10.0.0.2 cannot run a task: did not answer in time"),
    "another torch": ("versions", "failure", set_in("packages", "torch", to="2.12.0"),
                      "torch differs between nodes (2.13.0 on 10.0.0.1; 2.12.0 on 10.0.0.2): install"),
    "another Python": ("versions", "failure", set_in("python", to="3.12.1"), "python differs"),
    "extra absent": ("extras", "failure", set_in("extras", "deepspeed", to=None),
                     "--strategy deepspeed needs the package deepspeed, which is not installed on "
                     "10.0.0.2; install it (pip install 'deepspeed~=0.19.8'), or use --strategy fsdp"),
    "another version of an extra": ("versions", "failure", set_in("extras", "deepspeed", to="0.18.0"),
                                    "deepspeed differs between nodes (0.19.8 on 10.0.0.1; 0.18.0 on"),
    "package absent": ("package", "failure", set_in("trainyard", to={"fault": "ModuleNotFoundError"}),
                       "trainyard cannot be imported on 10.0.0.2 (ModuleNotFoundError): submit the job"),
    "other code": ("package", "failure", set_in("trainyard", "digest", to="def"), "different code"),
    "storage unseen": ("storage", "failure", set_in("reads", to="No such file or directory"),
                       "is not shared with 10.0.0.2 (read: No such file or directory): use a folder"),
    "storage read-only": ("storage", "failure", set_in("writes", to="Read-only file system"),
                          "(write: Read-only file system)"),
    "model absent": ("model", "failure", set_in("model", to="/m has no config.json"),
                     "cannot be loaded on 10.0.0.2 (/m has no config.json)"),
    "clock a little off": ("clocks", "warning", set_in("clock", "ahead", to=-4.0),
                           "the clock of 10.0.0.2 is off by 4 s"),
    "clock far off": ("clocks", "failure", set_in("clock", "ahead", to=90.0), "is off by 90 s"),
    "disk full": ("space", "warning", set_in("disk", to={"free": GIB, "total": 9 * GIB}),
                  "disk of 10.0.0.2: 1.0 GiB free of 9.0; free at least 5 GiB"),
    "container": ("space", "warning", set_in("shared_memory", to={"free": 2**26, "total": 2**26}),
                  "shared memory of 10.0.0.2: 0.1 GiB free of 0.1; free at least 1 GiB (containers"),
}  # fmt: skip


@pytest.mark.parametrize("ill", ILLS)
def test_an_ill_is_named_with_its_node_and_remedy(ill: str) -> None:
    check, level, change, sentence = ILLS[ill]
    nodes = well()
    change(nodes["b"])
    complaints = [
        found for found in run_checks(nodes, SHARDED, {"CPU": 1}, CHECKS)
        if found.level != "ok" and found.check != "authentication"
    ]  # fmt: skip
    assert [(found.check, found.level) for found in complaints] == [(check, level)]
    assert sentence in complaints[0].sentence


def test_an_extra_is_looked_for_where_the_flags_need_it_only() -> None:
    nodes = well()
    nodes["b"]["extras"] = {}
    (finding,) = run_checks(nodes, TrainConfig(), {}, ["extras"])
    assert finding == Finding("extras", "ok", "these flags need no other package")
    (finding,) = run_checks(well(), SHARDED, {}, ["extras"])
    assert finding == Finding("extras", "ok", "installed everywhere: deepspeed")
    assert "extras" in CHEAP


def test_a_node_reports_the_versions_of_extras(tmp_path: Path) -> None:
    with marked(str(tmp_path)) as question:
        extras = {"deepspeed": "deepspeed", "mlflow": "mlflow-skinny", "absent": "absent"}
        facts = examine(dataclasses.replace(question, extras=extras))
    assert facts["extras"] == {
        "deepspeed": version("deepspeed"),
        "mlflow": version("mlflow-skinny"),
        "absent": None,
    }


def test_the_driver_looks_for_extras_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "wandb" else find(name)
    )
    monkeypatch.setattr(preflight_module, "ray_session", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(preflight_module, "worker_resources", lambda _: {"CPU": 1})
    monkeypatch.setattr(preflight_module, "_facts", lambda *_: well())
    config = DoctorConfig(storage_path=str(tmp_path), report_to=("wandb",), zero_stage=3, json=True)
    report = examine_cluster(config)
    failures = {
        one["check"]: one["sentence"] for one in report["findings"] if one["level"] == "failure"
    }
    assert failures == {
        "extras": "--report-to wandb needs the package wandb, which is not installed; install it (pip "
        "install wandb), or leave it out: TensorBoard needs no other package",
        "flags": "--zero-stage is for --strategy deepspeed, not ddp; change one of the two",
    }


def test_nothing_is_said_against_nodes_in_good_health() -> None:
    found = run_checks(well(), TrainConfig(), {"CPU": 1}, CHECKS)
    assert {finding.level for finding in found if finding.check != "authentication"} == {"ok"}
    assert "8 worker(s) of {'CPU': 1} fit" in next(
        f.sentence for f in found if f.check == "resources"
    )


@pytest.mark.parametrize(
    ("grows", "level", "sentence"),
    [(True, "warning", "no node has a CPU yet: the autoscaler must start one first"),
     (False, "failure", "no node has a CPU for Ray Data: start one with --num-cpus")],
)  # fmt: skip
def test_nodes_that_are_still_to_come_are_no_failure(
    grows: bool, level: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after `ray up` there is the head alone, and no work runs on it."""
    monkeypatch.setattr("trainyard.doctor.cluster.checks.may_grow", lambda _: grows)
    head = {"a": {**well()["a"], "resources": {"CPU": 0.0}}}
    (finding,) = run_checks(head, TrainConfig(), {"CPU": 1}, ["resources"])
    assert (finding.level, sentence in finding.sentence) == (level, True)


def test_the_clock_is_only_blamed_beyond_what_the_question_took() -> None:
    nodes = well()
    nodes["b"]["clock"] = {"ahead": 20.0, "uncertainty": 20.0}
    (finding,) = run_checks(nodes, TrainConfig(), {}, ["clocks"])
    assert finding.level == "ok"


def test_every_node_is_asked_and_the_marker_is_gone_afterwards(
    cluster: Any, tmp_path: Path
) -> None:
    with marked(str(tmp_path)) as question:
        answers = ask(dataclasses.replace(question, model="/absent"), timeout=60)
        assert len(list(Path(question.marker).parent.iterdir())) == 1 + len(answers)
    assert not list(tmp_path.iterdir())
    (facts,) = answers.values()
    assert facts["packages"]["ray"] == cluster.__version__
    assert facts["trainyard"]["folder"] == str(ROOT / "platform/trainyard")
    assert (facts["reads"], facts["writes"]) == (None, None)
    assert facts["model"] == "/absent has no config.json"
    assert abs(facts["clock"]["ahead"]) <= 1


def test_a_node_that_goes_while_it_is_asked_is_left_out(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cluster.nodes()
    going = {"NodeID": "e" * 56, "Alive": True, "Resources": {}, "NodeManagerAddress": "10.0.0.9"}
    seen = iter([[*here, going], [*here, {**going, "Alive": False}]])
    monkeypatch.setattr(cluster, "nodes", lambda: next(seen))
    with marked(str(tmp_path)) as question:
        (facts,) = ask(question, timeout=60).values()
    assert facts["address"] == here[0]["NodeManagerAddress"]


def test_a_marker_goes_though_a_late_node_writes_beside_it(tmp_path: Path) -> None:
    with marked(str(tmp_path)) as question:
        (Path(question.marker).parent / "late").mkdir()
    assert not list(tmp_path.iterdir())


def test_a_storage_folder_that_the_doctor_made_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(config: DoctorConfig) -> Iterator[Finding]:
        with marked(config.storage_path):
            yield Finding("storage", "ok", "every node sees it")

    monkeypatch.setattr(preflight_module, "ray_session", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(preflight_module, "_examine_cluster", examine)
    examine_cluster(DoctorConfig(storage_path=str(tmp_path / "new" / "runs")))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    examine_cluster(DoctorConfig(storage_path=str(tmp_path / "old" / "runs")))
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


@pytest.mark.parametrize(
    ("flags", "check", "sentence"),
    [
        ({"model_name_or_path": "package:absent/model"}, "model", "'absent' is not installed here"),
        ({"model_name_or_path": "./absent"}, "model", "holds no config.json"),
        ({"storage_path": "s3://bucket/runs"}, "storage", "s3://bucket/runs cannot be used"),
        ({"storage_path": "/proc/runs"}, "storage", "cannot be written from here"),
        ({"task": "mrpc", "data_dir": "gleu"}, "data", "gleu"),
    ],
)
def test_what_is_wrong_here_already_is_found_under_its_name(
    cluster: Any,  # noqa: ARG001
    flags: dict[str, Any],
    check: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    report = examine_cluster(DoctorConfig(**{"storage_path": str(tmp_path), **flags}, json=True))
    (failure,) = [one for one in report["findings"] if one["level"] == "failure"]
    assert failure["check"] == check
    assert sentence in failure["sentence"]
    assert not list(tmp_path.iterdir())


def test_a_storage_that_the_node_does_not_share_is_seen(cluster: Any, tmp_path: Path) -> None:  # noqa: ARG001
    with marked(str(tmp_path)) as question:
        elsewhere = dataclasses.replace(question, marker=str(tmp_path / "elsewhere/driver"))
        (facts,) = ask(elsewhere, timeout=60).values()
    assert facts["reads"] == facts["writes"] == "No such file or directory"


def test_a_healthy_cluster_passes_and_its_workers_meet(
    cluster: Any,  # noqa: ARG001
    small_run: TrainConfig,
    tmp_path: Path,
) -> None:
    place = {"storage_path": str(tmp_path), "num_workers": 2, "resources_per_worker": {"CPU": 1}}
    report = examine_cluster(DoctorConfig(**{**dataclasses.asdict(small_run), **place}, json=True))
    assert report["ok"], report
    assert {finding["check"] for finding in report["findings"]} >= {*CHECKS, "workers"}
    met = next(f["sentence"] for f in report["findings"] if f["check"] == "workers")
    assert met.startswith("2 workers connected and summed by gloo over ")
    assert not list(tmp_path.iterdir())


def test_a_request_that_does_not_fit_fails_without_starting_workers(
    cluster: Any,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    config = DoctorConfig(storage_path=str(tmp_path), resources_per_worker={"CPU": 64}, json=True)
    report = examine_cluster(config)
    assert not report["ok"]
    (failure,) = [one for one in report["findings"] if one["level"] == "failure"]
    assert failure["check"] == "resources"
    assert "enough for 0" in failure["sentence"]


def test_preflight_stops_fit_on_several_nodes_only(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trainyard.doctor.cluster.preflight.ask",
        lambda *_, **__: {"b": well()["b"] | {"reads": "x"}},
    )
    config = TrainConfig(storage_path=str(tmp_path))
    preflight(config)
    monkeypatch.setattr(cluster, "nodes", lambda: [{"Alive": True}, {"Alive": True}])
    with pytest.raises(
        UserError, match=r"is not shared with 10\.0\.0\.2 \(read: x\): use a folder"
    ):
        preflight(config)


def test_the_job_exits_with_1_and_still_says_why(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/doctor.py"), "--address", "127.0.0.1:1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"] is False
    assert "FAILURE address: no Ray cluster answers at 127.0.0.1:1" in done.stderr
    assert "with these flags would fail here; correct each FAILURE first" in done.stderr
