"""Progress bar of a run, read from the run's folder."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from trainyard.storage import Files, RunFolder
from trainyard.summary import interval_words
from trainyard.terminal import progress_bar, say


def evaluation_words(line: Mapping[str, Any], score: str, last_step: int) -> str:
    ends = line.get("intervals", {}).get(score)
    behind = f" ({interval_words(ends)})" if ends else ""
    loss = f", loss {line['eval_loss']:.4f}" if "eval_loss" in line else ""
    return (
        f"step {line['step']} of {last_step}: {line['split']} {score} "
        f"{line['metrics'][score]:.4f}{behind}{loss}"
    )


class ProgressBar:
    """Progress bar with rows, losses, score, samples per second and time left.

    The bar reads the run's progress.json, so workers send nothing to it and never wait for it.

    Args:
        folder: Folder of the run.
        score: Name of the metric that is printed at each evaluation.
    """

    def __init__(self, folder: RunFolder, score: str) -> None:
        self._folder, self._score = folder, score
        self._bar: Any = None
        self._files, self._seen = Files(), 0
        self.new_lines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        if self._bar is not None:
            self._bar.close()

    def new_lines(self) -> Sequence[Mapping[str, Any]]:
        """Return the lines appended to metrics.jsonl since the last call.

        The result is empty after a resumed run has removed lines.
        """
        lines, _ = self._files.lines(self._folder.path / "metrics.jsonl")
        first, self._seen = self._seen, len(lines)
        return lines[first:]

    def update(self) -> None:
        """Update the bar, and print each new evaluation as a line."""
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
        for line in self.new_lines():
            if self._score in line.get("metrics", {}):
                say(evaluation_words(line, self._score, found["last_step"]))
        self._bar.set_postfix_str(
            ", ".join(
                f"{name} {value:.4g}"
                for name, value in (
                    ("loss", found["loss"]),
                    ("eval loss", found.get("eval_loss")),
                    (self._score, found["score"]),
                    ("samples/s", found["train_samples_per_second"]),
                )
                if value is not None
            ),
            refresh=False,
        )
        self._bar.update(found["step"] * size - self._bar.n)
