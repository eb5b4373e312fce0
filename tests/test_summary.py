"""The end of a job in words, and advice before it."""

from pathlib import Path
from typing import Any

import pytest

from trainyard.config import TrainConfig
from trainyard.storage import RunFolder
from trainyard.summary import Readable, duration, summary
from trainyard.training.driver.pace import slow_settings
from trainyard.training.driver.progress_bar import ProgressBar, evaluation_words

TRAINED: dict[str, Any] = {
    "job": "train", "run": "mail", "task": "own", "score": 0.9, "score_metric": "accuracy",
    "metrics": {"validation": {"f1": 0.7, "accuracy": 0.9}}, "seconds": 256.3, "steps": 102,
    "intervals": {"validation": {"accuracy": [0.84, 0.95]}}, "rows": {"validation": 30},
    "model": "runs/mail/model",
}  # fmt: skip


def test_a_training_ends_in_words() -> None:
    lines = summary({**TRAINED, "model": str(Path.cwd() / "runs/mail/model")})
    assert lines[:2] == [
        "trained mail: 102 steps in 4 min 16 s",
        "  validation accuracy 0.900 (95 % interval 0.840 to 0.950, 30 rows)",
    ]
    assert lines[2:] == [
        "  model    runs/mail/model",
        "  eval     trainyard eval --model-name-or-path runs/mail/model --validation-file UNSEEN_ROWS",
        "  predict  trainyard predict --model-name-or-path runs/mail/model --input-file FILE "
        "--output-file answers.jsonl",
        "  serve    trainyard serve --model-name-or-path runs/mail/model",
        "  curves   trainyard dashboard",
    ]


def test_a_score_on_rows_that_chose_the_checkpoint_says_so_unless_there_are_test_rows() -> None:
    lines = summary({**TRAINED, "chosen_on": ["validation"]})
    assert lines[1] == (
        "  validation accuracy 0.900 (95 % interval 0.840 to 0.950, 30 rows, which also chose the "
        "checkpoint)"
    )
    metrics = {**TRAINED["metrics"], "test": {"accuracy": 0.8}}
    lines = summary({**TRAINED, "chosen_on": ["validation"], "metrics": metrics})
    assert "chose" not in "".join(lines)
    assert "  test accuracy 0.800" in lines


@pytest.mark.parametrize(
    ("trials", "interval", "words"),
    [
        (6, [0.7, 0.9], " (95 % interval 0.700 to 0.900)"),
        (6, None, " (on the rows that chose the trial)"),
        (1, None, ""),
    ],
)
def test_a_sweep_without_confirmation_says_that_its_rows_chose_the_trial(
    trials: int, interval: list[float] | None, words: str
) -> None:
    sweep = {
        "job": "tune", "run": "mail", "seconds": 60.0, "score": 0.8, "interval": interval,
        "trials": {"finished": trials}, "best_hyperparameters": {}, "verdict": None,
        "best_config": "runs/mail/best.yaml", "model": "runs/mail/model",
    }  # fmt: skip
    assert summary(sweep)[0] == f"tuned mail in 1 min 00 s: score 0.800{words}"


def test_the_quickstart_ends_with_the_whole_command() -> None:
    *_, last = summary(
        {**TRAINED, "model": "runs/quickstart/model", "open": "http://127.0.0.1:8000/"}
    )
    assert last == (
        "`trainyard serve --model-name-or-path runs/quickstart` starts the server again; then open "
        "http://127.0.0.1:8000/ in a browser"
    )


def test_an_interval_without_width_is_not_shown_as_certainty() -> None:
    lines = summary({**TRAINED, "intervals": {"validation": {"accuracy": [1.0, 1.0]}}})
    assert lines[1].endswith("(no interval: all resamples of the rows agree, 30 rows)")


def test_a_notebook_does_not_show_an_interval_without_width() -> None:
    class Perfect(Readable):
        def as_json(self) -> dict[str, Any]:
            return {
                **TRAINED,
                "intervals": {"validation": {"accuracy": [1.0, 1.0], "f1": [0.6, 1.0]}},
            }

    html = Perfect()._repr_html_()
    assert "<td>no interval: all resamples of the rows agree</td>" in html
    assert "<td>0.6000 to 1.0000</td>" in html


def test_a_path_with_a_space_is_quoted() -> None:
    lines = summary({**TRAINED, "model": "my runs/mail/model"})
    assert any(line.endswith("--model-name-or-path 'my runs/mail/model'") for line in lines)


def test_the_dashboard_of_a_suite_reads_the_folder_of_its_runs() -> None:
    suite = {"job": "glue", "run": "glue", "seconds": 60.0, "score": None}
    lines = summary({**suite, "table": str(Path.cwd() / "runs/glue/glue.md")})
    assert lines[-1].endswith("trainyard dashboard --storage-path runs/glue")
    lines = summary({**suite, "table": "my runs/glue/glue.md"})
    assert lines[-1].endswith("trainyard dashboard --storage-path 'my runs/glue'")


def test_a_job_without_words_prints_none() -> None:
    assert summary({"job": "doctor", "ok": True}) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.84, "0.8 s"), (4.25, "4.2 s"), (9.97, "10 s"), (41, "41 s"), (59.6, "1 min 00 s"),
        (184, "3 min 04 s"), (256.3, "4 min 16 s"), (7500, "2 h 05 min"), (None, "–"),
        (float("nan"), "–"),
    ],
)  # fmt: skip
def test_seconds_read_as_people_say_them(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("fields", "rows", "advice"),
    [
        ({}, 100, None),
        ({}, 1000, "--per-device-train-batch-size 8 computes a step in fewer passes"),
        ({}, 50_000, "--train-batch-size 32"),
        ({"train_batch_size": 32, "per_device_train_batch_size": 16}, 50_000, None),
        ({"per_device_train_batch_size": 4, "num_workers": 2}, 1000, None),
        (
            {"train_batch_size": 32, "per_device_train_tokens": 4096},
            1000,
            "--per-device-train-batch-size 32 computes a step in fewer passes",
        ),
        ({"train_batch_size": 32, "per_device_train_tokens": 512}, 1000, None),
    ],
)
def test_a_setting_that_is_needlessly_slow_gets_one_sentence(
    fields: dict[str, Any], rows: int, advice: str | None
) -> None:
    found = slow_settings(TrainConfig(**fields), rows)
    assert len(found) == (advice is not None)
    assert all(advice in sentence for sentence in found if advice)


def test_lines_of_a_file_are_read_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    bar = ProgressBar(RunFolder(tmp_path), "f1")
    assert not bar.new_lines()
    with path.open("a") as file:
        file.write('{"step": 2}\n{"ste')
    assert list(bar.new_lines()) == [{"step": 2}]
    with path.open("a") as file:
        file.write('p": 3}\n')
    assert list(bar.new_lines()) == [{"step": 3}]
    path.write_text('{"step": 1}\n')  # as a resumed run drops lines
    assert not bar.new_lines()
    with path.open("a") as file:
        file.write('{"step": 2}\n')
    assert list(bar.new_lines()) == [{"step": 2}]


def test_an_evaluation_names_its_metric() -> None:
    line = {
        "step": 34,
        "split": "validation",
        "metrics": {"f1": 0.5},
        "intervals": {"f1": [0.4, 0.6]},
    }
    assert evaluation_words(line, "f1", 102) == (
        "step 34 of 102: validation f1 0.5000 (95 % interval 0.400 to 0.600)"
    )
