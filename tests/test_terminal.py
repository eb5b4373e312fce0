"""What a job says, and where it is kept."""

from pathlib import Path

import pytest

from trainyard.errors import UserError
from trainyard.terminal import logged, say


def fail() -> None:
    say("tokenized")
    raise UserError("the loss is nan; lower --learning-rate")


def test_lines_are_kept_with_how_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say("before")
    with pytest.raises(UserError), logged(tmp_path / "log.txt"):
        fail()
    with logged(tmp_path / "log.txt"), logged(tmp_path / "gone" / "log.txt"):
        say("again")
    say("after")
    said = [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert said == [
        "started",
        "tokenized",
        "ended by UserError: the loss is nan; lower --learning-rate",
        "started", "again", "ended",
    ]  # fmt: skip
    assert capsys.readouterr().err.split() == ["before", "tokenized", "again", "after"]
