"""The time ledger of a run: every second between two laps is booked to one account.

Rank 0 keeps progress.json's `seconds`, the driver keeps run.json's; both add to those of earlier
attempts. `time_ledger` combines them.
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
"""Titles of the accounts, in the order in which they are shown."""


class Stopwatch:
    """Seconds by account; from lap to lap each second is counted exactly once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._first = self._last = time.perf_counter()

    def lap(self, account: str) -> float:
        """Book the time since the last lap to `account`; return it in seconds."""
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
        """Move `seconds`, or all where there are fewer, from one account to another."""
        seconds = min(max(seconds, 0.0), self.seconds.get(source, 0.0))
        if seconds:
            self.seconds[source] -= seconds
            self.seconds[target] = self.seconds.get(target, 0.0) + seconds


def add(*books: Mapping[str, float]) -> dict[str, float]:
    """Add up several ledgers, to the millisecond."""
    accounts = {account: None for book in books for account in book}
    return {account: round(sum(b.get(account, 0.0) for b in books), 3) for account in accounts}


def time_ledger(run: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of a run by account, over all its attempts, from run.json and progress.json.

    The driver measures the total time of its workers, and the workers how they spent it; the rest is
    starting and stopping their processes. A trial of a sweep may have no separate driver: then
    `startup_seconds` in its run.json holds its waiting time.
    """
    driver, worker = dict(run.get("seconds") or {}), progress.get("seconds") or {}
    training = driver.pop("training", 0.0)
    rest = {"workers": max(training - sum(worker.values()), 0.0)} if training else {}
    if not driver and run.get("startup_seconds"):
        rest = {"workers": float(run["startup_seconds"])}
    seconds = add(driver, worker, rest)
    return {account: seconds[account] for account in ACCOUNTS if seconds.get(account)}
