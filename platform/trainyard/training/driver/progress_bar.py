"""The progress bar of a run, read from the run's folder."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from trainyard.storage import RunFolder
from trainyard.summary import interval_words
from trainyard.terminal import progress_bar, say


class Lines:
    """Lines that a file gets after this object was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = path.stat().st_size if path.exists() else 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Read what was appended since the last call, without a line that is being written."""
        if not self._path.exists():
            return
        size = self._path.stat().st_size
        self._end = min(self._end, size)  # a resumed run drops the lines after its checkpoint
        if size == self._end:
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._end += len(whole) + len(newline)
        for line in whole.splitlines():
            yield json.loads(line)


def evaluation_words(line: Mapping[str, Any], score: str, last_step: int) -> str:
    return (
        f"step {line['step']} of {last_step}: {line['split']} {score} "
        f"{line['metrics'][score]:.4f}"
        f"{interval_words(line.get('intervals', {}).get(score))}"
    )


class ProgressBar:
    """Rows, loss, samples per second and time left, read from the run's progress.json.

    Read from the folder and not sent by the workers, so that it is right on a cluster too, and
    nothing waits for it.
    """

    def __init__(self, folder: RunFolder, score: str) -> None:
        self._folder, self._score = folder, score
        self._bar: Any = None
        self._lines = Lines(folder.path / "metrics.jsonl")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        """Show where the run is, and each new evaluation in a line."""
        found = self._folder.progress()
        if not found:
            return
        size = found["rows_per_step"]
        if self._bar is None:
            self._bar = progress_bar(
                found["last_step"] * size,
                unit="row",
                title=self._folder.path.name,
                done=(found["step"] - 1) * size,
            )
        for line in self._lines.new():
            if self._score in line.get("metrics", {}):
                say(evaluation_words(line, self._score, found["last_step"]))
        self._bar.set_postfix_str(
            ", ".join(
                f"{name} {value:.4g}"
                for name, value in (
                    ("loss", found["loss"]),
                    ("score", found["score"]),
                    ("samples/s", found["train_samples_per_second"]),
                )
                if value is not None
            ),
            refresh=False,
        )
        self._bar.update(found["step"] * size - self._bar.n)
