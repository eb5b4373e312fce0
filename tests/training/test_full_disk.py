"""The disk of one worker is full: the others, which wait for it, end too.

Workers import this module for the callback, so it imports no helpers of the tests.
"""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from trainyard import TrainConfig, UserError, fit


class FullDisk(TrainerCallback):
    """The disk of rank 0 is full at step 2; the other rank waits for it in the next step."""

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.is_world_process_zero and state.global_step == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.long
@pytest.mark.timeout(240)  # the other worker would wait for 600 seconds
def test_a_full_disk_of_one_worker_ends_the_others_at_once(
    cluster: Any,  # noqa: ARG001
    small_run: TrainConfig,
    tmp_path: Path,
) -> None:
    config = replace(
        small_run,
        storage_path=str(tmp_path),
        run_name="full",
        num_workers=2,
        resources_per_worker={"CPU": 1},
        loop="trainer",
    )
    with pytest.raises(UserError, match=r"^run full failed: No space left on device; make room or"):
        fit(config, callbacks=[FullDisk()])
