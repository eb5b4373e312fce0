"""Run attempts in several processes over gloo, without Ray; all attempts use the same processes."""

import ctypes
import errno
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainyard.config import TrainConfig


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run. It is cut off after `cut_at` steps, like a killed one.

    With `no_waits`, a step fails if the host waits for a GPU, except while losses are read.
    """

    config: TrainConfig
    cut_at: int | None = None
    no_waits: bool = False
    killed: tuple[int, str] | None = None
    """Rank to kill with SIGKILL, and the place (`die_at`). The attempt must be the last one."""
    kills_all: bool = False
    """True to kill the other ranks too, which are in one process group (`run_forked`)."""
    full_disk: tuple[int, str] | None = None
    """Rank and place (`die_at`) where the disk is full."""
    small_disk: tuple[int, str] | None = None
    """Rank, and the place (`die_at`) after which it can write at most 16 KiB to a file."""
    own_caches: bool = False
    """True to give each rank a cache folder of its own below $TRAINYARD_CACHE, as on as many nodes."""
    measures_load: bool = False
    """True to write load-RANK.json to the run's parent folder, see `measured_load`."""


class CutOff(BaseException):
    """Simulated kill; a BaseException, which the package does not handle."""


def run_ranks(world: int, attempts: Sequence[Attempt], meeting: Path, longest: float = 540) -> None:
    """Run `attempts` on `world` processes, within `longest` seconds.

    `meeting` is a folder for their process group.
    """
    meeting.mkdir(parents=True)
    (meeting / "attempts.json").write_text(json.dumps([asdict(attempt) for attempt in attempts]))
    command = [sys.executable, __file__, str(meeting), str(world)]
    logs = [(meeting / f"rank-{rank}.log").open("w") for rank in range(world)]
    processes = [
        subprocess.Popen(
            [*command, str(rank)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=log, stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]  # fmt: skip
    try:
        codes = [process.wait(timeout=longest) for process in processes]
    finally:
        for process in processes:
            process.kill()
    last = "\n".join(
        f"--- rank {rank} ended with {code}\n{(meeting / f'rank-{rank}.log').read_text()[-3000:]}"
        for rank, code in enumerate(codes)
        if code
    )
    if killed := attempts[-1].killed:
        assert codes[killed[0]] == -signal.SIGKILL, last
        assert all(codes), last
    else:
        assert codes == [0] * world, last


def kill_group() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def shrink_disk() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))


@contextmanager
def measured_load(strategy: str, found: Path) -> Iterator[None]:
    """Measure how a strategy loads a checkpoint, and write the result to `found`.

    `bytes` is the largest growth of this process's own memory, without pages of mapped files.
    `mapped` lists files of the checkpoint that stay mapped.
    """
    from trainyard.training.worker.strategies import STRATEGIES

    kept = STRATEGIES[strategy]

    def load(model: Any, optimizer: Any, folder: Path) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else memory that earlier work has freed hides the growth
        before, sizes, done = _own_memory(), [0], threading.Event()

        def sample() -> None:
            while not done.wait(0.002):
                sizes.append(_own_memory())

        thread = threading.Thread(target=sample)
        thread.start()
        kept.load(model, optimizer, folder)
        done.set()
        thread.join()
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped = {line.split()[-1] for line in maps if str(folder) in line}
        grown = max(*sizes, _own_memory()) - before
        found.write_text(json.dumps({"bytes": grown, "mapped": sorted(mapped)}))

    STRATEGIES[strategy] = replace(kept, load=load)
    try:
        yield
    finally:
        STRATEGIES[strategy] = kept


def _own_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def run_attempt(entry: Mapping[str, Any], rank: int) -> None:
    """Run an attempt that was written as JSON."""
    config: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in entry["config"].items()
    }
    _run(Attempt(**{**entry, "config": TrainConfig(**config)}), rank)


def join_group(meeting: Path, world: int, rank: int) -> None:
    """Join a process group of `world` processes as `rank`; they rendezvous in a folder."""
    import torch
    import torch.distributed as dist

    if world > 1:  # a single process has no group, like a trial of Tune
        local = 0 if torch.cuda.is_available() else rank  # all processes share one GPU
        places = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {name: str(value) for name, value in places.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        dist.init_process_group("gloo", f"file://{meeting}/group", rank=rank, world_size=world)


def _run(attempt: Attempt, rank: int) -> None:
    import torch
    import torch.distributed as dist
    from support.runs_locally import die_at, kill_this_process

    from trainyard.data.splits import find_splits
    from trainyard.data.tokenize import prepare
    from trainyard.models.build import build_tokenizer
    from trainyard.storage.folder import open_run
    from trainyard.training.driver.restarts import worker_function
    from trainyard.training.worker.session import Session

    config = attempt.config
    if attempt.killed and attempt.killed[0] == rank:
        die_at(attempt.killed[1], kill_group if attempt.kills_all else kill_this_process)
    if attempt.full_disk and attempt.full_disk[0] == rank:
        die_at(attempt.full_disk[1], fill_disk)
    if attempt.small_disk and attempt.small_disk[0] == rank:
        die_at(attempt.small_disk[1], shrink_disk)
    if attempt.own_caches:
        os.environ["TRAINYARD_CACHE"] += f"/{rank}"
    folder = open_run(config.storage_path, config.resolved_run_name)
    data: list[Any] = [None]
    if rank == 0:
        folder.create()
        folder.fetch()
        cache = folder.path.parent / ".cache"
        data = [prepare(find_splits(config), build_tokenizer(config), config, cache, folder)]
        folder.share_tables(data[0].folders)
    if config.num_workers != 1:
        dist.broadcast_object_list(data)
    finish = Session.finish_step

    def cut_off(self: Session, done: int, *args: object) -> bool:
        watched = attempt.no_waits and torch.cuda.is_available()
        if watched:
            torch.cuda.set_sync_debug_mode("default")
        going_on = finish(self, done, *args)  # type: ignore[arg-type]
        if watched and 3 < done < self.last_step:
            torch.cuda.set_sync_debug_mode("error")
        if done == attempt.cut_at:
            raise CutOff
        return going_on

    Session.finish_step = cut_off  # type: ignore[assignment, method-assign]
    try:
        work = worker_function(config, find_splits(config).task, data[0], folder, threads=1)
        measured = folder.path.parent / f"load-{rank}.json"
        with measured_load(config.strategy, measured) if attempt.measures_load else nullcontext():
            outcome = work()
        if rank == 0:
            error = outcome.error and str(outcome.error)
            told = {"status": outcome.status, "error": error, "step": outcome.state.step}
            (folder.path / "outcome.json").write_text(json.dumps(told))
    except CutOff:
        pass
    finally:
        Session.finish_step = finish  # type: ignore[method-assign]


def main() -> None:
    """Join the group of `run_ranks`, and run its attempts."""
    import torch
    import torch.distributed as dist
    from support.lifted import lift, lift_compiler

    meeting, world, rank = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    lift()
    linear = torch.nn.functional.linear
    torch.set_num_threads(1)
    join_group(meeting, world, rank)
    attempts = json.loads((meeting / "attempts.json").read_text())
    if any(entry["config"]["strategy"] == "deepspeed" for entry in attempts):
        lift_compiler()
    for entry in attempts:
        run_attempt(entry, rank)
        assert torch.nn.functional.linear is linear  # ZeRO-3 replaces it
        if world > 1:
            dist.barrier()


if __name__ == "__main__":
    main()
