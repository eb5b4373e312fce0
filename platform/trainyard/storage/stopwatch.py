"""Where the time of a run goes: every second between two laps is booked to one account.

The worker that records (rank 0) keeps progress.json's `seconds`, the driver keeps run.json's; both
go on from what earlier attempts left. `time_ledger` puts them together.
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
"""Accounts in the order in which they are shown, and what people read."""


class Stopwatch:
    """Seconds by account; nothing is counted twice and, from lap to lap, nothing is left out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._first = self._last = time.perf_counter()

    def lap(self, account: str) -> float:
        """Book the time since the last lap to `account`; returns it, in seconds."""
        before, self._last = self._last, time.perf_counter()
        spent = self._last - before
        self.seconds[account] = self.seconds.get(account, 0.0) + spent
        return spent

    def take(self) -> dict[str, float]:
        """The seconds booked since the last `take`, for whoever writes them down."""
        taken, self.seconds = self.seconds, {}
        return taken

    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._first

    def move(self, source: str, target: str, seconds: float) -> None:
        """Book again `seconds` of `source`, as far as there are so many, to `target`."""
        seconds = min(max(seconds, 0.0), self.seconds.get(source, 0.0))
        if seconds:
            self.seconds[source] -= seconds
            self.seconds[target] = self.seconds.get(target, 0.0) + seconds


def add(*books: Mapping[str, float]) -> dict[str, float]:
    """The sum of several books, to the millisecond."""
    accounts = {account: None for book in books for account in book}
    return {account: round(sum(b.get(account, 0.0) for b in books), 3) for account in accounts}


def time_ledger(run: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a run by account, over all its attempts, from its run.json and progress.json.

    The driver knows how long its workers took in all and the workers what they did in that time;
    the rest is the starting and stopping of their processes. A trial of a sweep may have no driver
    of its own: then `startup_seconds` in its run.json says what it waited for.
    """
    driver, worker = dict(run.get("seconds") or {}), progress.get("seconds") or {}
    training = driver.pop("training", 0.0)
    rest = {"workers": max(training - sum(worker.values()), 0.0)} if training else {}
    if not driver and run.get("startup_seconds"):
        rest = {"workers": float(run["startup_seconds"])}
    found = add(driver, worker, rest)
    return {account: found[account] for account in ACCOUNTS if found.get(account)}
