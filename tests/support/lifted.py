"""Allow on CPUs what the package allows on GPUs only: DeepSpeed, and fp16 with loss scaling.

As a script it runs a job's script, `python tests/support/lifted.py jobs/train.py FLAGS`: in the job's
process and in its Ray Train workers, which get this code with the function that they run.
"""

import os
import runpy
import sys
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


def lift_compiler() -> None:
    """Keep DeepSpeed from compiling its collective operations; gloo computes the same sums.

    The compiler leaves a lock behind when it is killed, for which all later processes wait.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}  # unset, it is found out by running the compiler


def lift_workers(patch: pytest.MonkeyPatch) -> None:
    """Let this process build such configs, and its Ray Train workers train by them.

    Where this module can be imported, and the workers cannot import it, register it by
    `cloudpickle.register_pickle_by_value`.
    """
    from trainyard.training.driver import restarts

    build = restarts.worker_function

    def build_lifted(config: Any, *args: Any, **more: Any) -> Any:
        work, compiles = build(config, *args, **more), config.strategy == "deepspeed"

        def work_lifted() -> Any:
            lift()
            if compiles:
                lift_compiler()
            return work()

        return work_lifted

    lift_guards(patch)
    patch.setattr(restarts, "worker_function", build_lifted)


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


def main() -> None:
    """Run the script of a job with its flags."""
    del sys.argv[0]
    lift_workers(pytest.MonkeyPatch())
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
