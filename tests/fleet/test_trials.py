"""One trial in this process: reports, leave to go on, being stopped, and being taken up again."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storage.test_checkpoints import writer
from support.runs_locally import run_locally, weights_hash

from trainyard.config import TrainConfig
from trainyard.data.splits import find_splits
from trainyard.data.tokenize import prepare
from trainyard.errors import UserError
from trainyard.fleet import actor, tokenization_of
from trainyard.fleet.actor import WORST, RunProcess
from trainyard.fleet.spec import VERDICT, Ended
from trainyard.models.build import build_tokenizer
from trainyard.storage.atomic import link_tree
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.storage.lease import this_process
from trainyard.storage.stopwatch import time_ledger
from trainyard.storage.sweep_folder import SweepFolder, TrialSpec
from trainyard.training.outcome import TrainState
from trainyard.training.worker import session as session_module
from trainyard.training.worker.state import load_checkpoint
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.schedulers import SCHEDULERS, next_stretch, rank_stretches
from trainyard.tuning.space import build_space
from trainyard.tuning.trials import Context


class TrialProcess(RunProcess):
    """A process that takes trials."""

    def __init__(self, context: Context) -> None:
        super().__init__(context.shared)
        self.context = context

    def begin(self, trial: TrialSpec) -> None:
        self.start(self.context.run(trial))

    def prune(self) -> None:
        """Stop the trial as the driver does when the scheduler stops it."""
        (self._run.path / VERDICT).touch()
        self.stop()


@pytest.fixture(scope="module")
def config(small_run: TrainConfig) -> SweepConfig:
    own = {field.name: getattr(small_run, field.name) for field in dataclasses.fields(TrainConfig)}
    return SweepConfig(**{**own, "ledger": False, "num_train_epochs": 2, "logging_steps": 3})


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "sweep")


@pytest.fixture
def process(
    config: SweepConfig, folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrialProcess:
    """A trial's process without a cluster: resources are granted."""
    import contextlib

    from trainyard.training.driver import fit as training

    monkeypatch.setattr(training, "ray_session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(training, "worker_resources", lambda _: {"CPU": 1.0})
    splits = find_splits(config)
    data = prepare(splits, build_tokenizer(config), config, tmp_path / ".cache")
    context = Context(
        sweep="sweep",
        config=config,
        task=splits.task,
        data={tokenization_of(config): data},
        per_worker={"CPU": 1.0},
        folders={"search": folder.trials, "confirmation": folder.confirmation},
    )
    return TrialProcess(context)


def spec(folder: SweepFolder, index: int = 0, **hyperparameters: Any) -> TrialSpec:
    made = TrialSpec(index=index, name=f"trial-{index:04d}", hyperparameters=hyperparameters)
    folder.add(made)
    return made


def to_the_end(process: TrialProcess) -> list[dict[str, Any]]:
    reports = [process.next_report()]
    while not reports[-1]["done"]:
        reports.append(process.next_report())
    return reports


def test_a_trial_is_the_run_that_train_would_do(
    process: TrialProcess, folder: SweepFolder, config: SweepConfig
) -> None:
    """Also with a process that has run another trial before, and restarted from its records."""
    process.begin(spec(folder, 0, learning_rate=3e-4))
    to_the_end(process)
    process.begin(spec(folder, 1, learning_rate=1e-3, seed=5))
    reports = to_the_end(process)
    assert [report["evaluation"] for report in reports] == [1, 2]
    _, record = folder.records()
    assert (record.status, record.evaluations) == ("finished", 2)
    own = config.train_config(
        {"learning_rate": 1e-3, "seed": 5}, storage_path=str(folder.path), run_name="alone"
    )
    outcome, alone = run_locally(own)
    assert alone.metrics() == record.run.metrics()
    assert record.score == outcome.state.best_score == reports[-1]["score"]
    known = record.run.read()
    assert known["sweep"] == "sweep"
    assert known["trial"]["hyperparameters"] == {"learning_rate": 1e-3, "seed": 5}
    assert known["startup_seconds"] >= 0
    assert not list(record.run.checkpoints.glob("step-*"))  # model/ is all that is kept
    assert (record.run.model / "model.safetensors").exists()
    assert (record.run.predictions / "validation.npy").exists()

    before = record.run.read()
    process.prune()  # too late
    assert (record.run.read(), (record.run.path / VERDICT).exists()) == (before, False)
    process.begin(record.spec)
    assert [report["score"] for report in to_the_end(process)][-1] == reports[-1]["score"]
    assert record.run.read() == before


def test_a_trial_keeps_the_warnings(process: TrialProcess, folder: SweepFolder) -> None:
    ((key, data),) = process.context.data.items()
    data = dataclasses.replace(data, warnings=["warning: some texts are empty"])
    warned = TrialProcess(dataclasses.replace(process.context, data={key: data}))
    warned.begin(spec(folder, learning_rate=3e-4))
    to_the_end(warned)
    run = folder.records()[0].run
    assert run.read()["warnings"][:1] == data.warnings
    assert "## Warnings\n\n- some texts are empty\n" in (run.model / "README.md").read_text()


def test_a_stopped_trial_is_saved_and_holds_nothing(
    process: TrialProcess, folder: SweepFolder
) -> None:
    process.begin(spec(folder, learning_rate=1e-3))
    first = process.next_report()
    assert (first["evaluation"], first["done"]) == (1, False)
    losses = [line["loss"] for line in folder.records()[0].run.metrics() if "loss" in line]
    assert min(losses) > 0
    assert first["score"] - first["standing"] == pytest.approx(
        1e-9 * sum(losses) / len(losses), rel=1e-3
    )
    process.prune()
    (record,) = folder.records()
    assert (record.status, record.evaluations, record.score) == ("pruned", 1, first["score"])
    assert record.run.read()["reason"] == "stopped by the scheduler at evaluation 1"
    assert not (record.run.path / "lease.json").exists()
    assert not record.run.stop_request.exists()
    lines = record.run.metrics()
    assert max(line["step"] for line in lines) == 6  # it waited for the verdict: one epoch
    process.begin(record.spec)  # a resumed sweep hears of it again, and trains nothing
    assert process.next_report() == first
    assert process.next_report() == {
        **first, "done": True, "ended": Ended("pruned", "stopped by the scheduler at evaluation 1")
    }  # fmt: skip
    assert record.run.metrics() == lines


def test_a_killed_trial_goes_on_from_its_checkpoint(
    process: TrialProcess, folder: SweepFolder, config: SweepConfig, tmp_path: Path
) -> None:
    """Its process is gone after the first evaluation; its successor reports that one again."""
    own = spec(folder, learning_rate=1e-3)
    process.begin(own)
    first = process.next_report()
    run = folder.records()[0].run
    left = tmp_path / "left"
    shutil.copytree(run.path, left)  # what a process leaves that is killed here
    process.stop()
    shutil.rmtree(run.path)
    left.rename(run.path)
    (run.path / "lease.json").unlink()
    successor = TrialProcess(process.context)
    successor.begin(own)
    assert successor.next_report() == first
    assert to_the_end(successor)[-1]["done"]
    (record,) = folder.records()
    _, alone = run_locally(
        config.train_config(
            {"learning_rate": 1e-3}, storage_path=str(folder.path), run_name="alone"
        )
    )
    assert record.status == "finished"
    assert record.run.metrics() == alone.metrics()


def test_a_trial_asked_to_stop_can_go_on(process: TrialProcess, folder: SweepFolder) -> None:
    """The driver's way on a signal or when the time is up: not the scheduler's verdict."""
    process.begin(spec(folder, learning_rate=1e-3))
    process.next_report()
    run = folder.records()[0].run
    run.stop_request.touch()
    last = to_the_end(process)[-1]
    assert last["done"]
    (record,) = folder.records()
    assert record.status == "stopped"
    assert not record.ended
    assert list(run.checkpoints.glob("step-*"))


def test_a_trial_whose_driver_fails_is_saved_and_not_pruned(
    process: TrialProcess, folder: SweepFolder, config: SweepConfig
) -> None:
    """Tune then stops all processes, in the way in which it stops one for the scheduler."""
    own = spec(folder, learning_rate=1e-3)
    process.begin(own)
    first = process.next_report()
    process.stop()
    (record,) = folder.records()
    assert (record.status, record.evaluations) == ("stopped", 1)
    assert record.run.store().steps() == [6]
    assert not (record.run.path / "lease.json").exists()
    (record.run.path / VERDICT).touch()  # its driver was killed before this verdict was carried out
    process.begin(own)
    assert process.next_report() == first
    process.stop()
    assert folder.records()[0].status == "stopped"
    process.begin(own)
    assert to_the_end(process)[-1]["ended"] == Ended("finished")
    point = {"learning_rate": 1e-3}
    alone = config.train_config(point, storage_path=str(folder.path), run_name="alone")
    assert record.run.metrics() == run_locally(alone)[1].metrics()


def test_a_diverged_trial_says_so_and_reports_the_worst(
    process: TrialProcess, folder: SweepFolder
) -> None:
    process.begin(spec(folder, learning_rate=0.99, max_grad_norm=0.0, weight_decay=1e6))
    reports = to_the_end(process)
    (record,) = folder.records()
    assert record.status == "diverged"
    assert "lower --learning-rate" in record.run.read()["reason"]
    ended = Ended("diverged", record.run.read()["reason"])
    assert reports[-1] == {
        "score": WORST, "standing": WORST, "evaluation": 0, "done": True, "ended": ended,
    }  # fmt: skip
    json.dumps([dataclasses.asdict(ended), reports[-1]["standing"]], allow_nan=False)


def test_a_defect_fails_the_trial_and_not_its_process(
    process: TrialProcess, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(actor, "fit", broken)
        process.begin(spec(folder, 0, learning_rate=1e-3))
        assert to_the_end(process)[-1]["score"] == WORST
    process.begin(spec(folder, 1, learning_rate=1e-3))
    to_the_end(process)
    failed, finished = folder.records()
    assert (failed.status, finished.status) == ("failed", "finished")
    assert failed.run.read()["reason"] == "RuntimeError: out of memory; see error.txt"


def test_a_failed_trial_is_tried_again_from_its_last_checkpoint(
    process: TrialProcess, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk was full in its second epoch."""
    own = spec(folder, learning_rate=1e-3)
    run = folder.records()[0].run
    begun: list[int] = []

    commit = CheckpointStore.commit

    def full(store: CheckpointStore, *parts: Any) -> Path:
        if store.steps():
            raise UserError("the disk is full")
        return commit(store, *parts)

    def loaded(*parts: Any) -> TrainState:
        state = load_checkpoint(*parts)
        begun.append(state.step)
        return state

    monkeypatch.setattr(session_module, "load_checkpoint", loaded)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "commit", full)
        process.begin(own)
        to_the_end(process)
    assert run.read()["status"] == "failed"
    assert run.store().steps() == [6]
    run.update(status="stopped")  # as the same command does
    process.begin(own)
    to_the_end(process)
    assert run.read()["status"] == "finished"
    assert begun == [0, 6]
    assert not run.store().steps()


def test_a_trial_that_another_process_runs_is_left_alone(
    process: TrialProcess, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints and records are that process's, whatever becomes of it."""
    own = spec(folder, learning_rate=1e-3)
    run = folder.records()[0].run
    monkeypatch.setattr(actor, "TAKEOVER_SECONDS", 0.1)
    with run.lease():
        store = run.store()
        store.claim()
        store.commit(6, writer("its own"))
        run.update(status="running")
        process.begin(own)
        ended = to_the_end(process)[-1]["ended"]
        assert "already being run by process" in ended.reason
        assert store.steps() == [6]
        assert run.read() == {"status": "running"}
        store.check_claim()


def test_a_trial_stopped_for_what_its_killed_process_left_gives_the_lease_back(
    process: TrialProcess, folder: SweepFolder
) -> None:
    """The scheduler hears of the evaluation from the folder, and decides before anything trains."""
    own = spec(folder, learning_rate=1e-3)
    process.begin(own)
    process.next_report()
    process.prune()
    run = folder.records()[0].run
    run.update(status="running")
    (run.path / "lease.json").write_text(json.dumps({**this_process(), "ticks": 0}))
    successor = TrialProcess(process.context)
    successor.begin(own)
    assert successor.next_report()["evaluation"] == 1
    successor.prune()
    assert run.read()["status"] == "pruned"
    assert not (run.path / VERDICT).exists()
    assert not (run.path / "lease.json").exists()


def test_every_trial_reads_the_one_tokenization(
    process: TrialProcess, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainyard.data import tokenize as data

    monkeypatch.setattr(data, "tokenize", lambda *_: pytest.fail("a trial tokenized again"))
    for index in range(2):
        process.begin(spec(folder, index, learning_rate=1e-3 * (index + 1)))
        to_the_end(process)
    assert [record.status for record in folder.records()] == ["finished", "finished"]


def test_what_a_process_does_before_fit_is_in_the_ledger(
    process: TrialProcess, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the imports of the first trial of a process, which take seconds."""
    tokenizer = actor._tokenizer

    def slow(*key: Any) -> Any:
        time.sleep(1.0)
        return tokenizer(*key)

    monkeypatch.setattr(actor, "_tokenizer", slow)
    process.begin(spec(folder, learning_rate=1e-3))
    to_the_end(process)
    run = folder.records()[0].run
    known, ledger = run.read(), time_ledger(run.read(), run.progress())
    assert known["startup_seconds"] > 1
    wall = known["startup_seconds"] + known["loop_seconds"] + ledger.get("verdict", 0.0)
    assert 0.98 * wall <= sum(ledger.values()) <= 1.02 * wall


def test_a_population_exchanges_checkpoints_and_the_rest_trains_as_if_alone(
    process: TrialProcess, folder: SweepFolder, config: SweepConfig
) -> None:
    """Three members, an exchange after each of two epochs; what comes next is in the folders."""
    pbt = dataclasses.replace(config, scheduler="pbt", population=3)
    space = build_space("default", ["learning_rate=loguniform:1e-4:1e-2"], pbt)

    def next_one() -> Any:
        found = next_stretch(pbt, space, folder.records(), 2)
        assert found == next_stretch(pbt, space, folder.records(), 2)
        return found

    for index in range(6):
        stretch = next_one()
        folder.add(stretch)
        if index == 2:
            assert next_one() == "later"  # the others have not come to the exchange
        if index == 1:
            continue
        for waiting in folder.records():
            if waiting.status == "waiting":
                process.begin(waiting.spec)
                to_the_end(process)
    assert next_one() is None

    first, second = folder.records()[:3], folder.records()[3:]
    assert [trial.status for trial in first] == ["stopped"] * 3
    assert [trial.status for trial in second] == ["finished"] * 3
    ranked = rank_stretches(first)
    for trial in second:
        own = next(t for t in first if t.spec.member == trial.spec.member)
        lines = [line for line in trial.run.metrics() if "loss" in line]
        assert lines[0]["step"] == 9  # steps 1 to 6 are its parent's
        if own == ranked[-1]:
            assert trial.spec.parent == ranked[0].spec.name
            assert trial.spec.hyperparameters != ranked[0].spec.hyperparameters
        else:
            assert trial.spec.parent == own.spec.name
            assert trial.spec.hyperparameters == own.spec.hyperparameters
            alone = config.train_config(
                trial.spec.hyperparameters, storage_path=str(folder.path), run_name="alone"
            )
            _, undisturbed = run_locally(dataclasses.replace(alone, run_name=trial.spec.name))
            assert own.run.metrics() + trial.run.metrics() == undisturbed.metrics()
        peak = trial.spec.hyperparameters["learning_rate"]
        assert lines[0]["learning_rate"] == pytest.approx(peak * (1 - 9 / 12))


@pytest.mark.parametrize("committed", [True, False])
def test_a_stretch_killed_before_it_was_recorded_ends_where_it_would_have(
    process: TrialProcess, folder: SweepFolder, tmp_path: Path, *, committed: bool
) -> None:
    """Its evaluation is logged. Its checkpoint is committed, or was not yet; run.json has neither."""
    stretch = TrialSpec(
        index=0, name="trial-0000", hyperparameters={"learning_rate": 1e-3}, member=0,
        generation=0, stretch=1,
    )  # fmt: skip
    folder.add(stretch)
    process.begin(stretch)
    process.next_report()
    run = folder.records()[0].run
    left = tmp_path / "left"
    shutil.copytree(run.path, left)
    to_the_end(process)
    lines, saved = run.metrics(), weights_hash(run, 6)
    shutil.rmtree(run.path)
    left.rename(run.path)
    (run.path / "lease.json").unlink()
    if not committed:
        shutil.rmtree(run.store().path(6))
    assert not folder.records()[0].ended

    successor = TrialProcess(process.context)
    successor.begin(stretch)
    assert to_the_end(successor)[-1]["ended"].status == "stopped"
    (record,) = folder.records()
    assert record.ended
    assert (record.status, record.evaluations) == ("stopped", 1)
    assert run.metrics() == lines
    assert weights_hash(run, 6) == saved


def test_a_child_that_was_killed_while_it_inherited_inherits_again(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its parent's checkpoints, with the predictions, or none."""
    for index in range(2):
        spec(folder, index)
    parent, child = (record.run for record in folder.records())
    with pytest.raises(
        UserError, match=r"trial-0001 continues from trial-0000, which has no check"
    ):
        actor.inherit(child, parent)
    store = parent.store()
    store.claim()
    for step in (10, 20):
        store.commit(step, writer(f"step {step}"))
    parent.write_predictions({"validation": np.zeros((2, 2), np.float32)})
    with monkeypatch.context() as patch:

        def link(source: Path, target: Path) -> None:
            if "20" in target.name:
                raise SystemExit
            link_tree(source, target)

        patch.setattr(actor, "link_tree", link)
        with pytest.raises(SystemExit):
            actor.inherit(child, parent)
    assert child.store().steps() == []
    actor.inherit(child, parent)
    assert child.store().steps() == [10, 20]
    assert child.store().newest() == (20, child.store().path(20))
    assert (child.predictions / "validation.npy").exists()
    assert not (child.path / ".inherited").exists()


def test_a_population_refuses_what_is_fixed(config: SweepConfig) -> None:
    pbt = dataclasses.replace(config, scheduler="pbt")
    check = SCHEDULERS["pbt"].check_space
    with pytest.raises(UserError, match="which num_train_epochs cannot; search learning_rate"):
        check(pbt, build_space("default", ["num_train_epochs=randint:1:3"], pbt))
    with pytest.raises(UserError, match="members to their end; drop --num-trials 3"):
        check(dataclasses.replace(pbt, num_trials=3), build_space("default", (), pbt))
