"""The progress bar of a run, read from the run's folder."""

import sys
from typing import Any, Self

from trainyard.storage import RunFolder


class ProgressBar:
    """Rows, loss, samples per second and time left, read from the run's progress.json.

    Read from the folder and not sent by the workers, so that it is right on a cluster too, and
    nothing waits for it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        """Show where the run is."""
        from tqdm import tqdm

        found = self._folder.progress()
        if not found:
            return
        size = found["rows_per_step"]
        if self._bar is None:
            self._bar = tqdm(
                total=found["last_step"] * size,
                initial=(found["step"] - 1) * size,
                unit="row",
                desc=self._folder.path.name,
                file=sys.stderr,
                # A log file gets a line now and then, a terminal a moving bar.
                mininterval=0.5 if sys.stderr.isatty() else 30,
            )
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
