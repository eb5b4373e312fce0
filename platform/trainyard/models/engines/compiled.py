"""`torch.compile`: the model's own arithmetic, fused. Compiling takes up to minutes, at the start."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def build(
    model: Any, batch: Mapping[str, Any], dtype: str, file: Path | None
) -> Callable[..., Any]:
    """The compiled model, for batches of any shape; `batch` is compiled for at once."""
    import torch

    del dtype, file  # its weights are of their type already
    compiled: Callable[..., Any] = torch.compile(model, dynamic=True)
    with torch.inference_mode():
        compiled(**batch)
    return compiled
