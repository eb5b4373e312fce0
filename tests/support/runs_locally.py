"""Run the training loop in this process, without Ray, to check the invariants in seconds."""

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig
from trainyard.data.splits import find_splits
from trainyard.data.tokenize import prepare
from trainyard.models.build import build_tokenizer
from trainyard.storage.folder import RunFolder, open_run
from trainyard.training.driver.restarts import worker_function
from trainyard.training.outcome import Outcome


def run_locally(
    config: TrainConfig,
    on_evaluation: Callable[[], bool] | None = None,
    callbacks: Sequence[Any] = (),
) -> tuple[Outcome, RunFolder]:
    """Make one attempt at `config` with the function of Ray's workers; return outcome, folder."""
    folder = open_run(config.storage_path, config.resolved_run_name)
    folder.create()
    folder.fetch()
    splits = find_splits(config)
    cache = folder.path.parent / ".cache"
    data = prepare(splits, build_tokenizer(config), config, cache, folder)
    folder.share_tables(data.folders)
    work = worker_function(
        config, splits.task, data, folder, threads=1, on_evaluation=on_evaluation,
        callbacks=callbacks,
    )  # fmt: skip
    return work(), folder


def weights_hash(folder: RunFolder, step: int) -> str:
    """Return the SHA-256 of the weights and the optimizer state of the checkpoint at `step`."""
    from trainyard.training.worker.weights import stored_moments, whole_weights

    checkpoint = folder.store().path(step)
    digest = hashlib.sha256()
    for name, tensor in sorted(whole_weights(checkpoint).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    moments = stored_moments(checkpoint)["state"]
    for index in sorted(moments):
        for name in sorted(moments[index]):
            digest.update(moments[index][name].numpy().tobytes())
    return digest.hexdigest()


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(place: str, die: Callable[[], None] = kill_this_process) -> None:
    """Kill this process with SIGKILL, or call `die`, when it reaches a place.

    `step:N` is before the N-th optimizer step of this process. `save:N` is in the middle of the
    N-th checkpoint, when its files are written and its manifest is not. `while:N` is in the thread
    that writes a checkpoint, after training has done N steps. `MODULE:NAME:N` is before the N-th
    call of a function.
    """
    import importlib

    import torch

    from trainyard.storage import checkpoints

    point, _, count = place.rpartition(":")
    calls = 0

    def deadly(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == int(count):
                die()
            return function(*args, **kwargs)

        return call

    if point == "while":
        die_while_writing(int(count), die)
    elif point == "step":
        torch.optim.AdamW.step = deadly(torch.optim.AdamW.step)
    elif ":" in point:
        module, _, name = point.partition(":")
        owner: Any = importlib.import_module(module)
        owner = getattr(owner, name.rpartition(".")[0], owner)  # the class, or the module
        last = name.rpartition(".")[2]
        setattr(owner, last, deadly(getattr(owner, last)))
    else:
        checkpoints.hashes_of = deadly(checkpoints.hashes_of)  # type: ignore[attr-defined]


def die_while_writing(step: int, die: Callable[[], None]) -> None:
    """Call `die` in the writer of the checkpoint before `step`, once training reaches `step`."""
    from trainyard.training.worker import saving, session

    reached = threading.Event()
    write, finish = saving.CheckpointWriter._write_files, session.Session.finish_step
    interval = 3

    def write_slowly(self: Any, folder: Path, snapshot: Any) -> Any:
        if step - interval < snapshot.step < step:
            assert reached.wait(60)
            die()
        return write(self, folder, snapshot)

    def finish_step(self: Any, done: int, *args: Any) -> bool:
        going_on = finish(self, done, *args)
        if done == step:
            reached.set()
        return going_on

    saving.CheckpointWriter._write_files = write_slowly  # type: ignore[method-assign]
    session.Session.finish_step = finish_step  # type: ignore[method-assign, assignment]


def main() -> None:
    """Run the flags of the command line in this process, which dies at the place `KILL_AT`."""
    from trainyard.command import parse

    die_at(os.environ["KILL_AT"])
    run_locally(parse(TrainConfig, sys.argv[1:]))


if __name__ == "__main__":
    main()
