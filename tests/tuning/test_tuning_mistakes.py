"""What a wrong flag of a sweep says: one sentence, before anything is started."""

from pathlib import Path

import pytest
from support.tiny import write_task
from test_mistakes import refusal

MISTAKES = {
    "unknown searcher": (["--searcher", "bayes"], "bayes"),
    "zero budget": (["--num-trials", "0"], "--num-trials is 0; it must be at least 1"),
    "override": (["--set", "lr=uniform:0:1"], "--set lr=…: there is no such field"),
    "no such space": (["--space", "huge"], "--space huge is unknown; known: default, wide"),
    "pbt nested": (["--scheduler", "pbt", "--num-workers", "2"],
                   "--scheduler pbt pauses trials in their process"),
    "an error as metric": (["--metric-for-best-model", "log_loss"],
                           "log_loss is lower for better models, and a sweep compares by metrics"),
    "corrupt sweep": (["--run-name", "broken"], "sweep.json is damaged; use --fresh"),
    "folder of a run": (["--run-name", "single"], "is the folder of a single run, not of a sweep"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake: str, tmp_path: Path) -> None:
    arguments, sentence = MISTAKES[mistake]
    for name, file in (("broken", "sweep.json"), ("single", "run.json")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / file).write_text('{"kind": ')
    write_task(tmp_path / "glue", train=8, validation=4)
    flags = ["--task", "mrpc", "--data-dir", "glue", "--storage-path", "runs", *arguments]
    assert sentence in refusal("tune", flags, tmp_path)
