"""Class weights and label smoothing: the right numbers, and the invariants of every other run."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.runs_locally import run_locally, weights_hash
from torch.nn import functional

from trainyard import TrainConfig, UserError, fit
from trainyard.storage.folder import RunFolder
from trainyard.tasks import Task, get_task, own_task
from trainyard.training.outcome import TrainState
from trainyard.training.worker.objective import Objective, class_weights

LAST_STEP = 18
SEVERAL: Any = "multi_label_classification"


class Fixed(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **_: Any) -> Any:
        return self


def task_of(problem: Any, *labels: str) -> Task:
    return own_task(
        text_columns=("text",), label_column="label", labels=labels, problem_type=problem
    )


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 90 + [1] * 9 + [2])
    config = TrainConfig(class_weights="balanced")
    found = class_weights(config, task_of("single_label_classification", "a", "b", "c"), labels)
    assert found is not None
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    hot = np.array([[1, 0], [0, 0], [0, 0], [0, 1], [1, 0]], np.float32)
    several = class_weights(config, task_of(SEVERAL, "a", "b"), hot)
    assert several is not None
    np.testing.assert_allclose(several.numpy(), [3 / 2, 4 / 1])


def test_a_label_of_every_row_keeps_its_loss() -> None:
    hot = np.array([[1, 0], [1, 1], [1, 0]], np.float32)
    found = class_weights(TrainConfig(class_weights="balanced"), task_of(SEVERAL, "a", "b"), hot)
    assert found is not None
    np.testing.assert_allclose(found.numpy(), [1.0, 2.0])


def test_given_weights_have_mean_1_over_the_rows() -> None:
    labels = np.array([0, 0, 0, 1])
    task = task_of("single_label_classification", "ham", "spam")
    found = class_weights(TrainConfig(class_weights={"spam": 4.0}), task, labels)
    assert found is not None
    assert float(found[labels].mean()) == pytest.approx(1.0)
    assert float(found[1] / found[0]) == pytest.approx(4.0)


def test_the_loss_is_that_of_torch() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 0])
    config = TrainConfig(class_weights={"b": 2.0}, label_smoothing_factor=0.1)
    task = task_of("single_label_classification", "a", "b", "c")
    objective = Objective(config, task, labels.numpy())
    weights = class_weights(config, task, labels.numpy())
    assert weights is not None
    rows = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(
        objective(Fixed(logits), {"labels": labels}), (rows * weights[labels]).mean()
    )
    hot = functional.one_hot(labels, 3).float()
    several = Objective(
        TrainConfig(label_smoothing_factor=0.2), task_of(SEVERAL, *"abc"), hot.numpy()
    )
    torch.testing.assert_close(
        several(Fixed(logits), {"labels": hot}),
        functional.binary_cross_entropy_with_logits(logits, hot * 0.8 + 0.1),
    )


def test_a_loss_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        UserError, match="label_smoothing_factor is 1; it must be from 0 to below 1"
    ):
        TrainConfig(label_smoothing_factor=1.0)
    with pytest.raises(UserError, match="the task is a regression; leave them out"):
        TrainConfig(class_weights="balanced").check_loss(get_task("stsb"))
    with pytest.raises(
        UserError, match="names the label 'spam', but the labels are not_equivalent"
    ):
        TrainConfig(class_weights={"spam": 2.0}).check_loss(get_task("mrpc"))
    with pytest.raises(UserError, match="--class-weights equivalent 0: give a number above 0"):
        TrainConfig(class_weights={"equivalent": 0.0}).check_loss(get_task("mrpc"))


@pytest.mark.long
def test_workers_and_interruptions_change_no_bit(
    small_run: TrainConfig,
    cluster: Any,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(
        small_run, storage_path=str(tmp_path), run_name="alone", label_smoothing_factor=0.1,
        class_weights={"equivalent": 3.0}, resources_per_worker={"CPU": 1},
    )  # fmt: skip
    outcome, alone = run_locally(config)
    plain, other = run_locally(
        dataclasses.replace(
            config, run_name="plain", class_weights=None, label_smoothing_factor=0.0
        )
    )
    assert outcome.status == plain.status == "finished"
    expected = weights_hash(alone, LAST_STEP)
    assert weights_hash(other, LAST_STEP) != expected

    fit(dataclasses.replace(config, run_name="two", num_workers=2))
    assert weights_hash(RunFolder(tmp_path / "two"), LAST_STEP) == expected

    stopped = dataclasses.replace(config, run_name="stopped")
    folder = RunFolder(tmp_path / "stopped")
    folder.create()
    folder.stop_request.touch()
    first, _ = run_locally(stopped)
    assert first.status == "stopped"
    folder.stop_request.unlink()
    run_locally(stopped)
    assert weights_hash(folder, LAST_STEP) == expected


@pytest.mark.parametrize(("higher_is_better", "best"), [(True, 2), (False, 1)])
def test_the_best_evaluation_is_that_of_the_chosen_metric(
    higher_is_better: bool, best: int
) -> None:
    state = TrainState()
    for step, score in enumerate((0.5, 0.4, 0.6, 0.6)):
        state.step = step
        state.add_evaluation(score, {}, higher_is_better=higher_is_better)
    assert state.best_step == best
    assert state.evaluations_without_gain == 3 - best
    assert state.evaluations == 4
