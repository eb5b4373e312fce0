"""Packages, processor, device and threads of a run, on which its exact bits depend."""

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
    """Describe the environment of an attempt: packages, device, the driver's processor, threads.

    `with_workers` adds the kinds of the workers' processors and GPUs after the attempt.

    Args:
        config: Flags of the run.
        threads: CPU threads of each worker; None if unknown.
    """
    installed = versions("tokenizers", "numpy")
    return {
        "packages": {name: installed[name] for name in PACKAGES},
        "device": "gpu" if config.use_gpu else "cpu",
        "processor": machine(),
        "threads": threads,
    }


def recorded_environment(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the environment of a run's last attempt.

    A `record` without `environments` gives only the packages in its `versions`.
    """
    attempts = record.get("environments") or [{"packages": record.get("versions", {})}]
    last: Mapping[str, Any] = attempts[-1]
    return last


def with_workers(
    attempts: Sequence[Mapping[str, Any]], workers: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Return the environments of a run, with `workers` added to the last one.

    If the last environment already names other workers, it stays and a changed copy follows it.

    Args:
        attempts: Recorded environments, oldest first.
        workers: Sorted kinds of the last attempt's processors and GPUs.
    """
    *earlier, last = attempts
    same = last.get("workers", workers) == workers
    return [*(earlier if same else attempts), {**last, "workers": workers}]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List changes between two environments as `name old -> new`, without values unknown in one."""

    def flat(one: Mapping[str, Any]) -> dict[str, Any]:
        others = {name: one.get(name) for name in ("device", "processor", "threads")}
        return {**{name: one["packages"].get(name) for name in PACKAGES}, **others}

    old, new = flat(before), flat(now)
    return [
        f"{name} {old[name]} -> {value}"
        for name, value in new.items()
        if None not in (old[name], value) and old[name] != value
    ]
