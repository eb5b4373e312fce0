"""How long a sweep took, over all attempts at it."""

import time
from collections.abc import Mapping
from typing import Any

from trainyard.storage import SweepFolder


class Clock:
    """Seconds in all, and those of the search alone, of which --max-seconds is the limit.

    `write` them as they go: a driver that is killed does not get back what it spent.
    """

    def __init__(self, folder: SweepFolder, known: Mapping[str, Any]) -> None:
        self._folder, self._started = folder, time.time()
        self._before = float(known.get("seconds", 0.0))
        self._searched = float(known.get("search_seconds", self._before))
        self._search_ended: float | None = None

    def total(self) -> float:
        """Seconds in all."""
        return self._before + time.time() - self._started

    def searching(self) -> float:
        """Seconds of the search, with what each attempt at it needed to start."""
        return self._searched + (self._search_ended or time.time()) - self._started

    def end_search(self) -> None:
        """What comes now is the confirmation."""
        self._search_ended = time.time()

    def write(self) -> None:
        """Put both into sweep.json."""
        self._folder.update(
            seconds=round(self.total(), 2), search_seconds=round(self.searching(), 2)
        )
