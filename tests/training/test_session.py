"""What happens between the steps of a run."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.lifted import lift_guards, lift_scaler
from support.runs_locally import run_locally, weights_hash
from support.tiny import write_task

from trainyard.batch_plan import EpochPlan, Plan
from trainyard.config import TrainConfig
from trainyard.data.splits import find_splits
from trainyard.errors import Diverged
from trainyard.evaluation.scoring import predict
from trainyard.models import seed_generator
from trainyard.storage import RunFolder, SuiteFolder, open_run
from trainyard.training.driver.environment import with_workers
from trainyard.training.worker import batches, session
from trainyard.training.worker.gradients import Gradients
from trainyard.training.worker.journal import Journal
from trainyard.training.worker.saving import CheckpointWriter


def test_batches_gathered_ahead_by_a_thread_are_the_same(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As next to a GPU: a run that is interrupted and resumed has the weights of one on a CPU."""
    config = dataclasses.replace(small_run, storage_path=str(tmp_path), run_name="here")
    _, here = run_locally(config)
    monkeypatch.setattr(batches.Gatherer, "gathers_ahead", True)
    ahead = dataclasses.replace(config, run_name="ahead", eval_steps=4)
    stopped, _ = run_locally(ahead, lambda: False)
    assert (stopped.status, stopped.state.step) == ("stopped", 4)
    _, folder = run_locally(ahead)
    assert weights_hash(folder, 18) == weights_hash(here, 18)


def test_a_cpu_draws_the_numbers_of_torch_manual_seed() -> None:
    for seed in (0, 7, 2**64 - 1):
        torch.manual_seed(seed)
        expected = torch.rand(5)
        seed_generator(torch.device("cpu"), seed)
        assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_answers_that_are_no_numbers_end_the_run_before_they_are_kept(
    task: str, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        small_run, task=task, data_dir=str(write_task(tmp_path / "glue", task)), ledger=False,
        storage_path=str(tmp_path), run_name="nan", num_train_epochs=2,
    )  # fmt: skip
    calls = 0

    def answer(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        logits = predict(*arguments)
        if calls == 2:  # after the second epoch
            logits[5] = np.nan
        return logits

    monkeypatch.setattr("trainyard.training.worker.session.predict", answer)
    outcome, folder = run_locally(config)
    assert (outcome.status, type(outcome.error)) == ("failed", Diverged)
    assert str(outcome.error).startswith(
        "after step 12 the model answers NaN or infinity on 1 of 37 rows of validation; lower "
        "--learning-rate"
    )
    assert outcome.state.best_step == 6
    assert [line["step"] for line in folder.metrics() if "split" in line] == [6]
    assert [path.name for path in folder.checkpoints.glob("step-*")] == ["step-00000006"]


def test_a_step_that_was_refused_for_its_gradients_ends_the_run_like_any_divergence(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ZeRO, which looks at them: the losses are logged, and the records are closed."""
    step, steps = Gradients.step, 0

    def refuse(gradients: Gradients, *rest: Any) -> bool:
        nonlocal steps
        steps += 1
        return steps != 4 and step(gradients, *rest)

    closed: list[object] = []
    monkeypatch.setattr(Gradients, "step", refuse)
    monkeypatch.setattr(Journal, "close", lambda journal: closed.append(journal))
    config = dataclasses.replace(
        small_run, storage_path=str(tmp_path), max_steps=6, save_steps=2, ledger=False
    )
    outcome, folder = run_locally(config)
    assert (outcome.status, type(outcome.error)) == ("failed", Diverged)
    assert str(outcome.error).startswith(
        "the gradients of step 4 are not finite; lower --learning-rate or add --warmup-steps"
    )
    assert [line["step"] for line in folder.metrics() if "loss" in line] == [1, 2, 3, 4]
    assert folder.store().steps() == [2]
    assert len(closed) == 1


def test_twenty_skips_in_a_row_are_a_clear_failure(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale that fp16 would need is below any that it tries."""
    grow = Gradients.backward

    def overflow(gradients: Gradients, loss: Any) -> None:
        grow(gradients, loss * float("inf"))

    monkeypatch.setattr(Gradients, "backward", overflow)
    lift_guards(monkeypatch)
    lift_scaler(monkeypatch)
    config = dataclasses.replace(
        small_run, storage_path=str(tmp_path), mixed_precision="fp16", max_steps=30, ledger=False,
        eval_steps=30,
    )  # fmt: skip
    outcome, folder = run_locally(config)
    assert (outcome.status, type(outcome.error)) == ("failed", Diverged)
    scale = outcome.state.loss_scale
    assert str(outcome.error) == (
        f"in fp16 the gradients of 20 steps in a row overflowed, the last one at step 20 with a loss "
        f"scale of {scale:g}; use --mixed-precision bf16 or no, or lower --learning-rate"
    )
    assert outcome.state.skipped_in_a_row == 20
    assert [line["step"] for line in folder.metrics()] == [*range(1, 20)]
    assert folder.store().steps() == []


class StopsAt(transformers.TrainerCallback):
    """A user's callback that ends training by one of two flags, at an event of step `step`."""

    def __init__(self, step: int, flag: str, event: str) -> None:
        self.step, self.flag, self.event = step, flag, event

    def _decide(self, event: str, done: int, control: Any) -> None:
        if (event, done) == (self.event, self.step):
            setattr(control, self.flag, True)

    def on_step_begin(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        self._decide("begin", state.global_step + 1, control)

    def on_substep_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        self._decide("within", state.global_step + 1, control)

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        self._decide("end", state.global_step, control)


@pytest.mark.parametrize(
    ("flag", "event"),
    [
        ("should_training_stop", "end"), ("should_epoch_stop", "end"),
        ("should_training_stop", "within"), ("should_epoch_stop", "begin"),
    ],
)  # fmt: skip
def test_a_callback_that_stops_training_saves_the_run(
    flag: str, event: str, small_run: TrainConfig, tmp_path: Path
) -> None:
    """It can be resumed, and ends with the bits of a run without the callback."""
    config = dataclasses.replace(
        small_run, storage_path=str(tmp_path), run_name="stops", loop="trainer", max_steps=8,
        eval_steps=6, ledger=False,
    )  # fmt: skip
    outcome, folder = run_locally(config, callbacks=[StopsAt(4, flag, event)])
    assert (outcome.status, outcome.state.step, outcome.by_callback) == ("stopped", 4, True)
    assert folder.store().steps() == [4]
    outcome, folder = run_locally(config, callbacks=[StopsAt(4, flag, event)])  # its last step
    assert (outcome.status, outcome.state.step, outcome.by_callback) == ("finished", 8, False)
    _, whole = run_locally(dataclasses.replace(config, run_name="whole"))
    assert weights_hash(folder, 8) == weights_hash(whole, 8)


def test_rows_that_are_set_aside_choose_nothing_and_are_scored_once(
    small_run: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(small_run, storage_path=str(tmp_path), ledger=False)
    plain, before = run_locally(dataclasses.replace(config, run_name="all"))
    outcome, folder = run_locally(dataclasses.replace(config, run_name="part", test_share=0.4))
    losses = [
        [line["loss"] for line in run.metrics() if "loss" in line] for run in (before, folder)
    ]
    assert losses[0] == losses[1]  # training is the same
    assert set(plain.state.best_evaluation) == {"validation"}

    lines = [line for line in folder.metrics() if "split" in line]
    assert {line["split"] for line in lines} == {"validation"}
    best = max(lines, key=lambda line: (line["metrics"]["f1"], -line["step"]))
    assert (outcome.state.best_step, outcome.state.best_score) == (
        best["step"],
        best["metrics"]["f1"],
    )
    assert set(outcome.state.best_evaluation) == {"validation", "validation_test"}
    rows = {
        name: len(np.load(folder.predictions / f"{name}.npy"))
        for name in outcome.state.best_evaluation
    }
    assert rows == {"validation": 22, "validation_test": 15}
    test = np.load(folder.predictions / "validation_test.npy").argmax(axis=1)
    labels = [row["label"] for row in rows_of(config, "validation_test")]
    assert outcome.state.best_evaluation["validation_test"]["metrics"]["accuracy"] == pytest.approx(
        np.mean(test == labels)
    )


def rows_of(config: TrainConfig, name: str) -> list[dict[str, Any]]:
    splits = find_splits(dataclasses.replace(config, test_share=0.4)).splits
    (split,) = (split for split in splits if split.name == name)
    return [row for batch in split.batches() for row in batch.to_pylist()]


def test_predictions_are_those_of_the_checkpoint_that_a_run_resumes_from(
    small_run: TrainConfig, tmp_path: Path
) -> None:
    """An attempt that was killed between an evaluation and its checkpoint leaves later ones."""
    config = dataclasses.replace(small_run, storage_path=str(tmp_path), max_steps=4, ledger=False)
    outcome, folder = run_locally(config)
    best = outcome.state.best_step
    kept = {path.name: path.read_bytes() for path in folder.predictions.iterdir()}
    stored = folder.checkpoints / f"step-{best:08d}" / "predictions"
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == kept
    np.save(folder.predictions / "validation.npy", np.zeros((1, 2), np.float32))
    run_locally(config)
    assert {path.name: path.read_bytes() for path in folder.predictions.iterdir()} == kept


def test_a_run_resumes_on_other_machines_and_says_so(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An elastic run on a mixed cluster does not stop for it."""
    config = dataclasses.replace(
        small_run, storage_path=str(tmp_path), max_steps=12, eval_steps=6, ledger=False
    )
    folder = RunFolder(tmp_path / config.resolved_run_name)
    monkeypatch.setattr(session, "machine", lambda: "EPYC")
    stopped, _ = run_locally(dataclasses.replace(config, max_steps=12), lambda: False)
    assert (stopped.status, stopped.notes, stopped.state.workers) == ("stopped", [], ["EPYC"])
    monkeypatch.setattr(session, "machine", lambda: "Xeon")
    outcome, _ = run_locally(config)
    assert (outcome.status, outcome.state.workers) == ("finished", ["Xeon"])
    (note,) = outcome.notes
    assert note.startswith(
        "warning: the workers of step 6 and later are other machines (Xeon) than before (EPYC)"
    )
    here: dict[str, Any] = {"packages": {}}
    recorded = with_workers([here], ["EPYC"])
    assert with_workers(recorded, ["EPYC"]) == recorded == [{**here, "workers": ["EPYC"]}]
    assert with_workers(recorded, ["Xeon"]) == [*recorded, {**here, "workers": ["Xeon"]}]
    assert folder.store().steps()


def test_another_order_of_rows_is_refused(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a numpy whose generator draws other numbers: rows would be trained on twice."""
    config = dataclasses.replace(
        small_run,
        storage_path=str(tmp_path),
        run_name="run",
        max_steps=12,
        eval_steps=6,
        ledger=False,
    )
    run_locally(config, lambda: False)
    epoch = Plan.epoch

    def another(plan: Plan, number: int) -> EpochPlan:
        planned = epoch(plan, number)
        return dataclasses.replace(planned, order=planned.order[::-1].copy())

    monkeypatch.setattr(Plan, "epoch", another)
    outcome, folder = run_locally(config)
    assert outcome.status == "failed"
    assert "the rows of run 'run' are in another order than before" in str(outcome.error)
    assert "use --fresh to start it anew" in str(outcome.error)
    assert folder.store().steps() == [6]


def test_a_run_next_to_others_of_its_suite_keeps_no_measured_peak(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They train on the same machine, whatever the number of its workers."""
    config = dataclasses.replace(small_run, storage_path=str(tmp_path), max_steps=2, ledger=False)
    kept: list[bool] = []

    def peak(*_: Any, keep: bool, **__: Any) -> float:
        kept.append(keep)
        return 1e12

    monkeypatch.setattr(session, "peak_flops", peak)
    suite = SuiteFolder(tmp_path / "suite")
    with suite.lease():
        for folder in (suite.run("part"), open_run(str(tmp_path), "alone")):
            monkeypatch.setattr("support.runs_locally.open_run", lambda *_, run=folder: run)
            with folder.lease():
                outcome, _ = run_locally(config)
            assert outcome.peak_flops == 1e12
    assert kept == [False, True]


def test_the_exchange_ends_though_the_writer_cannot_be_closed(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process group may be broken, because another process died."""
    close, ended = CheckpointWriter.close, list[RunFolder]()

    def broken(writer: CheckpointWriter) -> None:
        close(writer)
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr(CheckpointWriter, "close", broken)
    monkeypatch.setattr(RunFolder, "end_exchange", lambda folder: ended.append(folder))
    config = dataclasses.replace(small_run, storage_path=str(tmp_path), max_steps=1, ledger=False)
    with pytest.raises(RuntimeError, match="closed by peer"):
        run_locally(config)
    assert len(ended) == 1
