"""Who is stopped early: Ray Tune's schedulers, judged by evaluations and not by Tune's own count."""

from collections.abc import Callable
from typing import Any

from trainyard.tuning.config import SweepConfig

NO_LIMIT = 10**6
"""ASHA's last rung, never reached: a trial ends by its own number of epochs. (Tune stops a trial
at exactly `max_t` reports, which would cut off what it does after its last evaluation.)"""


def _fifo(_: SweepConfig) -> Any:
    from ray.tune.schedulers import FIFOScheduler

    return FIFOScheduler()


def _asha(config: SweepConfig) -> Any:
    """Asynchronous successive halving (Li et al. 2020)."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="evaluation",
        grace_period=config.grace_period,
        reduction_factor=config.reduction_factor,
        max_t=NO_LIMIT,
    )


SCHEDULERS: dict[str, Callable[[SweepConfig], Any]] = {
    "fifo": _fifo,
    "asha": _asha,
    "pbt": _fifo,  # its stretches are trials that end by themselves: see `population`
}
