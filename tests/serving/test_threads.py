"""Which thread of a server uses several cores: one, or OpenMP's threads sleep where they should spin."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from trainyard.serving.replica.threads import process_threads, run_pass, start


def where() -> tuple[str, int]:
    """The thread and the number of cores of a pass."""
    return threading.current_thread().name, torch.get_num_threads()


def test_passes_over_several_cores_all_run_in_one_thread() -> None:
    with ThreadPoolExecutor(4, thread_name_prefix="batcher") as callers:
        found = [callers.submit(run_pass, where, cores).result() for cores in (2, 3, 2, 1, 2)]
    names = {name for name, cores in found if cores > 1}
    assert [cores for _, cores in found] == [2, 3, 2, 1, 2]
    assert len(names) == 1
    assert found[3][0] not in names


def test_a_pass_beside_one_over_several_cores_takes_one() -> None:
    inside, leave = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        assert leave.wait(10)

    with ThreadPoolExecutor(2, thread_name_prefix="batcher") as callers:
        wide = callers.submit(run_pass, wait, 2)
        assert inside.wait(10)
        name, cores = callers.submit(run_pass, where, 2).result()
        leave.set()
        wide.result()
        assert (name.split("_")[0], cores) == ("batcher", 1)
        assert callers.submit(run_pass, where, 2).result()[1] == 2


def test_a_pass_that_fails_leaves_the_cores_to_the_next() -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run_pass(fail, 2)
    assert run_pass(where, 2)[1] == 2


def test_the_next_version_gets_the_cores_of_the_process_whatever_ran_before_it() -> None:
    given = process_threads()
    with ThreadPoolExecutor(1) as narrow:
        narrow.submit(run_pass, where, 1).result()  # torch now gives each new thread one core
    assert start(process_threads).result() == given


def test_a_loading_thread_ends() -> None:
    thread = start(threading.current_thread).result()
    thread.join(10)
    assert not thread.is_alive()
    assert thread.daemon, "one that hangs would keep the process"
