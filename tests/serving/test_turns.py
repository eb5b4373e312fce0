"""Loads of one node check the free memory in turn, and none waits for ever."""

import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainyard.errors import UserError
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica import host as host_module
from trainyard.serving.replica import turns
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.metrics import ReplicaMetrics
from trainyard.serving.replica.turns import NotNeededError, Turn, memory_turn

HOLD = """
import sys, time
from pathlib import Path
from trainyard.serving.replica.turns import Turn
assert Turn(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock file of a node without other models."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(turns, "POLL_SECONDS", 0.01)
    return turns.turn_file("memory-cpu")


def is_free(file: Path) -> bool:
    with closing(Turn(file)) as turn:
        return turn.take()


def test_two_models_do_not_both_take_the_memory_that_is_free_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, needed, refused = [100], 60, list[str]()

    def check(*_: Any) -> None:
        if needed > free[0]:
            raise UserError("60 are needed and 40 are free")
        time.sleep(0.1)  # in which another one could check

    def take(*_: Any, **__: Any) -> Any:
        time.sleep(0.1)
        free[0] -= needed
        return SimpleNamespace(padding=SimpleNamespace(note=None), parameters=None)

    def load(source: str) -> None:
        try:
            Host.load(Version(source=source), ModelOptions(threads=1), ReplicaMetrics())
        except UserError as error:
            refused.append(str(error))

    choice = SimpleNamespace(how=dict, about=dict)
    monkeypatch.setattr(host_module, "locate", lambda *_: (Path("model"), {}))
    monkeypatch.setattr(host_module, "task_of", lambda _: "task")
    monkeypatch.setattr(host_module, "choose", lambda *_: choice)
    monkeypatch.setattr(host_module, "check_memory", check)
    monkeypatch.setattr(host_module, "PREDICTORS", {"task": SimpleNamespace(load=take)})
    monkeypatch.setattr(host_module, "json_schema", lambda _: {})
    monkeypatch.setattr(
        Host, "__init__", lambda host, _, __, about, ___: setattr(host, "about", about)
    )
    monkeypatch.setattr(Host, "warm_up", lambda _: None)
    threads = [threading.Thread(target=load, args=[name]) for name in ("mail", "news")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert refused == ["60 are needed and 40 are free"]
    assert free == [40]


def needed() -> bool:
    return True


def test_loads_that_gave_up_on_one_that_hangs_take_turns_too(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MEMORY_SECONDS", 0.3)
    now, most, lock = [0], [0], threading.Lock()

    def load() -> None:
        with memory_turn("cpu", needed):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.05)
            with lock:
                now[0] -= 1

    with closing(Turn(file)) as hanging:
        assert hanging.take()
        began = time.monotonic()
        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - began >= 0.3
        assert most == [1]
        with memory_turn("cuda", needed):
            pass  # another device
    with memory_turn("cpu", needed):
        assert not is_free(file)
    assert is_free(file)


def test_a_forked_child_does_not_keep_the_turn(file: Path) -> None:
    """Libraries fork workers while a model loads; each has the descriptor of the lock."""
    turn = Turn(file)
    assert turn.take()
    assert turn._file is not None
    inherited = os.dup(turn._file)  # as a fork does
    try:
        turn.close()
        assert is_free(file)
    finally:
        os.close(inherited)


def test_a_load_that_hangs_is_waited_for_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = turns.turn_file("memory-cpu-late")
    with closing(Turn(file)) as first, closing(Turn(late)) as second:
        assert first.take()
        since = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: since + 121)
        with memory_turn("cpu", needed):
            assert not is_free(late)
        assert second.take()
        monkeypatch.setattr(time, "monotonic", lambda: since + 300)
        with memory_turn("cpu", needed):
            assert not is_free(late)  # two hang, and this one does not wait


def test_the_time_of_the_holder_before_is_not_taken_for_that_of_the_holder(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the lock and the write of its time, the file has the time of an earlier turn."""
    written = os.pwrite
    with closing(Turn(file)) as earlier:
        assert earlier.take()
    began = time.monotonic()
    with closing(Turn(file)) as holder:
        monkeypatch.setattr(os, "pwrite", lambda *_: 0)
        assert holder.take()
        monkeypatch.setattr(os, "pwrite", written)
        monkeypatch.setattr(time, "monotonic", lambda: began + 200)

        def end(_: float) -> None:
            assert holder.take()  # writes its time
            holder.close()

        monkeypatch.setattr(time, "sleep", end)
        with memory_turn("cpu", needed):
            assert is_free(turns.turn_file("memory-cpu-late"))


def test_a_load_that_is_no_longer_wanted_leaves_the_queue(file: Path) -> None:
    answers = [True, True, False]
    with closing(Turn(file)) as holder:
        assert holder.take()
        with (
            pytest.raises(NotNeededError),
            memory_turn("cpu", lambda: answers.pop(0)),
        ):
            pytest.fail("it loads")
    with (
        pytest.raises(NotNeededError),
        memory_turn("cpu", lambda: False),
    ):
        pytest.fail("it loads")
    assert is_free(file)


def test_the_turn_of_a_killed_process_is_free(file: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not is_free(file)
    finally:
        holder.kill()
        holder.wait()
    assert is_free(file)


def test_without_a_place_for_the_file_each_has_the_turn(file: Path) -> None:
    file.symlink_to("elsewhere")  # it could lead anywhere
    with closing(Turn(file)) as one:
        assert one.take()
        assert is_free(file)
    assert not (file.parent / "elsewhere").exists()
