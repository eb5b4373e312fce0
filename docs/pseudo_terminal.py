"""Commands in a pseudo-terminal, and the lines that a reader would see there."""

import codecs
import os
import pty
import re
import select
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

COLUMNS, ROWS = 120, 40
"""Size of the terminal, as programs see it."""

PART = re.compile(
    r"\x1b\[([\d;?]*)([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[^\[\]]|[\r\n\b]|[^\x1b\r\n\b]+"
)
"""A sequence, a control character, or text."""
UNFINISHED = re.compile(r"\x1b(?:\[[\d;?]*|\][^\x07\x1b]*\x1b?)?$")

Recording = list[tuple[float, str]]
"""Seconds since the start, and what was written then."""


class Screen:
    """Lines of a terminal of any height and width; colors are dropped.

    Text replaces what it is written over, so of a progress bar the last state remains.
    """

    def __init__(self) -> None:
        """Start with an empty line."""
        self._rows: list[str] = [""]
        self._row = self._column = 0
        self._unfinished = ""

    def write(self, text: str) -> None:
        """Process output; a sequence may end in the next call."""
        text = self._unfinished + text
        end = UNFINISHED.search(text)
        self._unfinished = end[0] if end else ""
        for part in PART.finditer(text.removesuffix(self._unfinished)):
            match part[0]:
                case "\n":
                    self._down(1)
                case "\r":
                    self._column = 0
                case "\b":
                    self._column = max(self._column - 1, 0)
                case words if words[0] != "\x1b":
                    self._put(words)
                case _ if part[2]:
                    self._control(part[2], part[1])

    def _control(self, kind: str, numbers: str) -> None:
        first = numbers.partition(";")[0]
        count = int(first) if first.isdigit() else 0
        row = self._rows[self._row]
        match kind:
            case "A":
                self._row = max(self._row - max(count, 1), 0)
            case "B":
                self._down(max(count, 1))
            case "C":
                self._column += max(count, 1)
            case "D":
                self._column = max(self._column - max(count, 1), 0)
            case "G":
                self._column = max(count, 1) - 1
            case "K" if count == 0:
                self._rows[self._row] = row[: self._column]
            case "K" if count == 1:
                blank = " " * min(self._column + 1, len(row))
                self._rows[self._row] = blank + row[len(blank) :]
            case "K":
                self._rows[self._row] = ""
            case "J" if count == 0:
                self._rows[self._row :] = [row[: self._column]]

    def _down(self, rows: int) -> None:
        self._row += rows
        self._rows += [""] * (self._row + 1 - len(self._rows))

    def _put(self, text: str) -> None:
        row = self._rows[self._row].ljust(self._column)
        end = self._column + len(text)
        self._rows[self._row] = row[: self._column] + text + row[end:]
        self._column = end

    def lines(self) -> list[str]:
        """Return all lines since the start, without blanks at their ends."""
        lines = [row.rstrip() for row in self._rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def lines_of(recording: Iterable[tuple[float, str]]) -> list[str]:
    """Return the lines that a recording leaves on the screen."""
    screen = Screen()
    for _, text in recording:
        screen.write(text)
    return screen.lines()


class Terminal:
    """A command of the shell that runs in a terminal; `recording` is what it wrote so far."""

    def __init__(self, command: str, folder: Path, environment: Mapping[str, str]) -> None:
        """Start `command` in `folder`."""
        self.recording: Recording = []
        self._began = time.monotonic()
        self._main, other = pty.openpty()
        termios.tcsetwinsize(other, (ROWS, COLUMNS))
        self._process = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env={**environment, "TERM": "xterm-256color"},
            stdin=other, stdout=other, stderr=other, start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            # Before the read, so that nothing is left. Processes that outlive the command, such as
            # Ray's, may hold the terminal open.
            ended = self._process.poll() is not None
            if select.select([self._main], [], [], 0.1)[0]:
                try:
                    data = os.read(self._main, 65536)
                except OSError:  # EIO: every process has closed the terminal
                    break
                self._add(decoder.decode(data))
            elif ended:
                break
        os.close(self._main)

    def _add(self, text: str) -> None:
        seconds = round(time.monotonic() - self._began, 2)
        if self.recording and seconds - self.recording[-1][0] < 0.05:
            seconds, before = self.recording.pop()
            text = before + text
        self.recording.append((seconds, text))

    def lines(self) -> list[str]:
        """Return the lines on the screen."""
        return lines_of([*self.recording])

    def wait(self, seconds: float) -> int:
        """Return the exit status once the command has ended.

        Raises:
            TimeoutError: It runs for longer than `seconds`; it is killed.
        """
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise TimeoutError(f"not ended after {seconds:.0f} s: {self.lines()[-5:]}") from None
        self._reader.join()
        return status

    def wait_for(self, words: str, seconds: float) -> None:
        """Return once a line has `words`.

        Raises:
            TimeoutError: No line has them after `seconds`, or the command has ended; it is killed.
        """
        deadline = time.monotonic() + seconds
        while not any(words in line for line in self.lines()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise TimeoutError(f"no line has {words!r}: {self.lines()[-5:]}")
            time.sleep(0.1)

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)
