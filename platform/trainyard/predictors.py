"""Deprecated alias of `trainyard.inference`, to be removed in the release after 0.2."""

import warnings
from typing import Any

from trainyard import inference


def __getattr__(name: str) -> Any:
    found = getattr(inference, name)
    warnings.warn(
        f"trainyard.predictors.{name} is now trainyard.inference.{name}",
        DeprecationWarning,
        stacklevel=2,
    )
    return found
