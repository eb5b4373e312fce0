"""What a job says, where it is kept, and what happens when its reader leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainyard.command import JOBS
from trainyard.errors import UserError
from trainyard.terminal import logged, readers_may_leave, say


def fail() -> None:
    say("tokenized")
    raise UserError("the loss is nan; lower --learning-rate")


def always() -> bool:
    return True


def test_lines_are_kept_with_how_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say("before")
    with pytest.raises(UserError), logged(tmp_path / "log.txt", always):
        fail()
    with logged(tmp_path / "log.txt", always), logged(tmp_path / "gone" / "log.txt", always):
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


def without_reader(words: list[str], both: bool = False, **variables: str) -> tuple[int, bytes]:
    """Run `trainyard` with a pipe whose reader has left; return its status and what stderr got."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "from trainyard.command import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        stdout=writer,
        stderr=writer if both else subprocess.PIPE,
        env=os.environ | variables,
        check=False,
    )
    os.close(writer)
    return done.returncode, done.stderr or b""


@pytest.mark.parametrize("name", ["", *JOBS])
def test_help_without_a_reader_has_no_traceback(name: str) -> None:
    assert without_reader([*name.split(), "--help"]) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "both"),
    [(["--version"], False), (["completion", "bash"], False), (["init", "no.csv"], True)],
)
def test_no_output_without_a_reader_has_a_traceback(
    words: list[str], both: bool, unbuffered: str
) -> None:
    assert without_reader(words, both, PYTHONUNBUFFERED=unbuffered) == (141, b"")


def test_the_broken_pipe_of_a_connection_is_an_error() -> None:
    with pytest.raises(BrokenPipeError, match="a peer left"), readers_may_leave():
        raise BrokenPipeError("a peer left")
