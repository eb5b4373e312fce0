"""A sweep as people see it, and all that lies below a storage path."""

import time
from functools import cached_property
from pathlib import Path

from trainyard.report.dashboard.records import Run, instant, known, without_secrets
from trainyard.report.kit import Status
from trainyard.storage import EXPIRY_SECONDS, Files, Lease, folders, mapping, newest, real, words

DEFAULT = "default"
"""What a sweep calls the default recipe where a trial could stand."""


class Sweep:
    """One sweep folder."""

    def __init__(self, files: Files, path: Path, key: str) -> None:
        self.path, self.key, self.name = path, key, path.name
        self._files = files
        self.record, fault = files.json(path / "sweep.json")
        self.problems = [fault] if fault else []

    @cached_property
    def trials(self) -> list[Run]:
        """In the order in which they were decided."""
        return self._runs("trials")

    @cached_property
    def confirmations(self) -> list[Run]:
        """The runs with fresh seeds."""
        return self._runs("confirmation")

    def _runs(self, part: str) -> list[Run]:
        found = [
            Run(self._files, self.path / part / name, f"{self.key}/{part}/{name}", self)
            for name in folders(self.path / part)
        ]
        return sorted(found, key=lambda run: (real(run.trial.get("index")) or 0, run.name))

    @property
    def status(self) -> Status:
        """As sweep.json says; "stopped" when its driver was lost."""
        status = self.record.get("status")
        if status == "running" and self.is_lost:
            return "stopped"
        return known(status)

    @cached_property
    def is_lost(self) -> bool:
        """Whether neither the sweep nor a trial has given a sign of life lately."""
        signs = [self.path / name for name in (Lease.NAME, "sweep.json")]
        for part in ("trials", "confirmation"):
            for name in folders(self.path / part):
                signs += [self.path / part / name / file for file in ("progress.json", "run.json")]
        return time.time() - newest(*signs) > EXPIRY_SECONDS

    @property
    def reason(self) -> str:
        """Why it ended as it did, in a sentence; empty when there is nothing to say."""
        if self.record.get("status") == "running" and self.is_lost:
            return "its driver is gone; the same command goes on where it was"
        return without_secrets(words(self.record.get("reason") or ""))

    @property
    def metric(self) -> str:
        """Name of the trials' score."""
        metric = self.record.get("metric")
        return metric if isinstance(metric, str) else ""

    @property
    def started(self) -> float | None:
        """Seconds since 1970."""
        return instant(self.record.get("started"))

    @property
    def ended(self) -> float | None:
        """Seconds since 1970."""
        return None if self.status == "running" else instant(self.record.get("ended"))

    @property
    def seconds(self) -> float | None:
        """Over all attempts where the record says so, else from start to end."""
        known = real(self.record.get("seconds"))
        if known is not None and self.status != "running":
            return known
        if self.started is None:
            return known
        return max((self.ended or time.time()) - self.started, 0.0)

    @cached_property
    def fields(self) -> list[str]:
        """Names of the hyperparameters, in the order of the space."""
        names = dict.fromkeys(mapping(self.record.get("space")))
        for trial in self.trials:
            names.update(dict.fromkeys(trial.hyperparameters))
        return list(names)

    @property
    def keeps_default(self) -> bool:
        """Whether the winner was worse than the default recipe, which is the result then."""
        return mapping(self.record.get("result")).get("best_trial") == DEFAULT

    @cached_property
    def best(self) -> Run | None:
        """The trial that the sweep chose, or the best so far."""
        chosen = mapping(self.record.get("result")).get("best_trial")
        for trial in self.trials:
            if trial.name == chosen:
                return trial
        scored = [trial for trial in self.trials if trial.best and trial.status != "diverged"]
        return max(scored, key=lambda t: t.best.score if t.best else 0.0, default=None)


class Yard:
    """All runs and sweeps below one storage path; ask a new one for news, with the same files."""

    def __init__(self, storage: Path, files: Files) -> None:
        self.storage = storage
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        for name in folders(storage.resolve()):  # the storage itself may well be a link
            path = storage / name
            if (path / "sweep.json").is_file():
                self.sweeps[name] = Sweep(files, path, name)
            elif (path / "run.json").is_file():
                self.runs[name] = Run(files, path, name)

    def find(self, key: str) -> Run | Sweep | None:
        """What a key names: `run`, `sweep`, `sweep/trials/run` or `sweep/confirmation/run`.

        Only names that were found by listing folders lead anywhere, so none can leave the storage.
        """
        name, _, rest = key.partition("/")
        if not rest:
            return self.sweeps.get(name) or self.runs.get(name)
        if (sweep := self.sweeps.get(name)) is None:
            return None
        return next((r for r in (*sweep.trials, *sweep.confirmations) if r.key == key), None)
