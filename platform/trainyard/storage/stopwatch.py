"""Time ledger of a run: its seconds by account, each second counted once.

Rank 0 stores `seconds` in progress.json, and the driver stores `seconds` in run.json. Both include
earlier attempts. `time_ledger` combines the two files.
"""

import time
from collections.abc import Mapping
from typing import Any

ACCOUNTS: Mapping[str, str] = {
    "start_up": "start-up",
    "workers": "starting and stopping workers",
    "tokenization": "tokenization",
    "data": "data wait",
    "compute": "compute",
    "sync": "waiting for other workers",
    "verdict": "waiting for the sweep's scheduler",
    "evaluation": "evaluation",
    "checkpoint": "checkpoint",
    "records": "records",
    "export": "export",
}
"""Display titles of the accounts, in display order."""


class Stopwatch:
    """Seconds by account; each second between two laps belongs to exactly one account."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._first = self._last = time.perf_counter()

    def lap(self, account: str) -> float:
        """Add the seconds since the last lap to `account`, and return these seconds."""
        before, self._last = self._last, time.perf_counter()
        spent = self._last - before
        self.seconds[account] = self.seconds.get(account, 0.0) + spent
        return spent

    def take(self) -> dict[str, float]:
        taken, self.seconds = self.seconds, {}
        return taken

    def total(self) -> float:
        return time.perf_counter() - self._first

    def move(self, source: str, target: str, seconds: float) -> None:
        """Move `seconds` from account `source` to `target`, at most the content of `source`."""
        seconds = min(max(seconds, 0.0), self.seconds.get(source, 0.0))
        if seconds:
            self.seconds[source] -= seconds
            self.seconds[target] = self.seconds.get(target, 0.0) + seconds


def add(*books: Mapping[str, float]) -> dict[str, float]:
    """Sum several ledgers by account, rounded to milliseconds."""
    accounts = {account: None for book in books for account in book}
    return {account: round(sum(b.get(account, 0.0) for b in books), 3) for account in accounts}


def time_ledger(run: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of a run by account, over all attempts, without accounts of zero seconds.

    The driver measures the total `training` time of the workers; rank 0 breaks it down by account.
    The difference is account `workers`: starting and stopping processes. A trial of a sweep may
    lack a driver's ledger; then account `workers` is its `startup_seconds`.

    Args:
        run: Content of run.json.
        progress: Content of progress.json.
    """
    driver, worker = dict(run.get("seconds") or {}), progress.get("seconds") or {}
    training = driver.pop("training", 0.0)
    rest = {"workers": max(training - sum(worker.values()), 0.0)} if training else {}
    if not driver and run.get("startup_seconds"):
        rest = {"workers": float(run["startup_seconds"])}
    seconds = add(driver, worker, rest)
    return {account: seconds[account] for account in ACCOUNTS if seconds.get(account)}
