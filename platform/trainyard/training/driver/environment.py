"""Packages, processor, device and threads: a run's bits depend on them, too."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.config import TrainConfig
from trainyard.models import machine
from trainyard.storage import versions

PACKAGES = (
    "python",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "accelerate",
    "ray",
    "datasets",
)


def environment(config: TrainConfig, threads: int | None = None) -> dict[str, Any]:
    """Describe the environment of an attempt: package versions, device, the driver's processor, threads.

    The `workers` join at its end: kinds of processors and GPUs.
    """
    installed = versions("tokenizers", "numpy")
    return {
        "packages": {name: installed[name] for name in PACKAGES},
        "device": "gpu" if config.use_gpu else "cpu",
        "processor": machine(),
        "threads": threads,
    }


def recorded_environment(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the environment of a run's last attempt; of a run of the first version its packages."""
    attempts = record.get("environments") or [{"packages": record.get("versions", {})}]
    last: Mapping[str, Any] = attempts[-1]
    return last


def with_workers(
    attempts: Sequence[Mapping[str, Any]], workers: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Return the environments of a run with the kinds of workers of its last attempt.

    An attempt that resumes on other machines has a separate entry.
    """
    *earlier, last = attempts
    same = last.get("workers", workers) == workers
    return [*(earlier if same else attempts), {**last, "workers": workers}]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List what changed between two environments, as `name old -> new`; unknown values do not count."""

    def flat(one: Mapping[str, Any]) -> dict[str, Any]:
        others = {name: one.get(name) for name in ("device", "processor", "threads")}
        return {**{name: one["packages"].get(name) for name in PACKAGES}, **others}

    old, new = flat(before), flat(now)
    return [
        f"{name} {old[name]} -> {value}"
        for name, value in new.items()
        if None not in (old[name], value) and old[name] != value
    ]
