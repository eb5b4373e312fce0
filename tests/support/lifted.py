"""Let CPUs run what the product keeps to GPUs: DeepSpeed, and fp16 with its loss scale."""

import os
from typing import Any

import pytest

INIT_SCALE = 2.0**24
"""Loss scale that the first steps of a small model overflow with."""
GROWTH_INTERVAL = 4


def lift_guards(patch: pytest.MonkeyPatch) -> None:
    """Let configs be built that CPUs are refused."""
    patch.setattr("trainyard.config.train.GPU_STRATEGIES", ())
    patch.setattr("trainyard.config.train.check_precision", lambda *_, **__: None)


def lift() -> None:
    """Let this process train by such configs. Call it before anything imports DeepSpeed."""
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    lift_guards(pytest.MonkeyPatch())
    lift_scaler(pytest.MonkeyPatch())


def lift_scaler(patch: pytest.MonkeyPatch) -> None:
    """Let Accelerate scale the loss of fp16 on CPUs."""
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
