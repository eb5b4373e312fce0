"""Results in a notebook: words, HTML, history and predictions."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

import trainyard
from trainyard import FitResult, TrainConfig, UserError, fit


class Counts(transformers.TrainerCallback):
    """Writes a line for each step to a file, from the worker's process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        with self.path.open("a") as file:
            file.write(f"{state.global_step}\n")


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("callbacks") / "steps"


@pytest.fixture(scope="module")
def result(
    cluster: Any,  # noqa: ARG001
    small_run: TrainConfig,
    counted: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> FitResult:
    storage = str(tmp_path_factory.mktemp("notebook"))
    config = replace(small_run, storage_path=storage, loop="trainer", run_name="small", max_steps=4)
    return fit(config, callbacks=[Counts(counted)])


def test_callbacks_are_called_in_the_workers(result: FitResult, counted: Path) -> None:
    assert counted.read_text().split() == [str(step + 1) for step in range(result.steps)]


def test_callbacks_need_the_trainer_loop(small_run: TrainConfig, counted: Path) -> None:
    with pytest.raises(UserError, match="set loop='trainer', or leave them out"):
        fit(replace(small_run, loop="accelerate"), callbacks=[Counts(counted)])


def test_a_result_reads_as_words_and_as_html(result: FitResult) -> None:
    assert repr(result).startswith("trained small: 4 steps in ")
    assert result.score_metric in repr(result)
    html = result._repr_html_()
    assert "<td>validation</td>" in html
    cells = re.findall(rf"<td>{result.score_metric}</td><td>([\d.]+)</td>", html)
    assert cells == [f"{result.metrics['validation'][result.score_metric]:.4f}"]


def test_history_has_a_row_for_each_logged_step(result: FitResult) -> None:
    history = result.history
    assert history.index.name == "step"
    assert history.loc[result.steps, f"validation_{result.score_metric}"] == pytest.approx(
        result.metrics["validation"][result.score_metric]
    )


def test_a_result_predicts_texts_and_pairs(result: FitResult) -> None:
    assert result.predict([]) == []
    pairs = result.predict([("ba co", "da"), ("fo", "ba")])
    assert len(pairs) == 2
    assert all(0 <= answer["score"] <= 1 and isinstance(answer["label"], str) for answer in pairs)
    with pytest.raises(UserError, match="is in a bucket"):
        replace(result, model="s3://bucket/run/model").predict(["ba"])


@pytest.mark.parametrize(
    ("name", "keyword", "sentence"),
    [
        ("fit", "patienc", "fit has no argument 'patienc'; did you mean 'patience'?"),
        ("fit", "learning_rate",
         "fit has no argument 'learning_rate'; give it to the config: fit(TrainConfig(learning_rate=…))"),
        ("fit", "bf16",
         "fit has no argument 'bf16'; give it to the config: fit(TrainConfig(bf16=…))"),
        ("tune", "num_trails",
         "tune has no argument 'num_trails'; did you mean tune(SweepConfig(num_trials=…))?"),
        ("evaluate", "num_error",
         "evaluate has no argument 'num_error'; did you mean evaluate(EvalConfig(num_errors=…))?"),
        ("predict", "qqqq", "predict has no argument 'qqqq'; it has config"),
        ("predict", "configg", "predict has no argument 'configg'; did you mean 'config'?"),
        ("serve", "prot", "serve has no argument 'prot'; did you mean 'port'?"),
        ("serve", "alowed_hosts", "serve has no argument 'alowed_hosts'; did you mean 'allowed_hosts'?"),
        ("serve", "model", "serve has no argument 'model'; it has source, port, "),
    ],
)  # fmt: skip
def test_a_misspelled_argument_gets_a_suggestion(name: str, keyword: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        getattr(trainyard, name)(**{keyword: 1})
    assert str(error.value).startswith(sentence)
    assert isinstance(error.value, TypeError)


def test_the_face_has_every_job_as_a_function() -> None:
    for name in ("fit", "evaluate", "predict", "tune", "serve"):
        assert callable(getattr(trainyard, name))
        assert name in dir(trainyard)
