"""Allow on CPUs what the package allows on GPUs only: DeepSpeed, and fp16 with loss scaling."""

import os
from typing import Any

import pytest

INIT_SCALE = 2.0**24
"""Initial loss scale; large enough that the first steps of a small model overflow."""
GROWTH_INTERVAL = 4


def lift_guards(patch: pytest.MonkeyPatch) -> None:
    """Allow configs that are otherwise an error without a GPU."""
    patch.setattr("trainyard.config.train.GPU_STRATEGIES", ())
    patch.setattr("trainyard.config.train.check_precision", lambda *_, **__: None)


def lift() -> None:
    """Let this process train with such configs. Call it before DeepSpeed is imported."""
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    lift_guards(pytest.MonkeyPatch())
    lift_scaler(pytest.MonkeyPatch())


def lift_scaler(patch: pytest.MonkeyPatch) -> None:
    """Make Accelerate scale the loss in fp16 on CPUs, too."""
    import torch
    from accelerate import Accelerator

    device = "cuda" if torch.cuda.is_available() else "cpu"
    build = Accelerator.__init__

    def build_with_fp16(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        if self.state.mixed_precision == "fp16":
            self.native_amp = True
            given = self.scaler_handler.to_kwargs() if self.scaler_handler else {}
            ours = {"init_scale": INIT_SCALE, "growth_interval": GROWTH_INTERVAL}
            self.scaler = torch.amp.GradScaler(device, **ours | given)

    patch.setattr(Accelerator, "__init__", build_with_fp16)
