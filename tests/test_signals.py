"""Signals: one of `timeout` counts once; `serve` ends by SIGTERM as by Ctrl-C, also while Ray starts."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainyard import signals
from trainyard.cluster import start_ray
from trainyard.command.cli import run_job
from trainyard.config import TrainConfig
from trainyard.errors import Interrupted, UserError
from trainyard.serving.server import ServeConfig, serve_model
from trainyard.signals import StopSignals, Terminated, ending_by_signals, wait_for_signal


def test_two_signals_at_once_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = tmp_path / "stop"
    with StopSignals(request) as stop, stop.training():
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert request.exists()
        monkeypatch.setattr(signals, "ONE_SIGNAL_SECONDS", 0.0)
        with pytest.raises(Interrupted, match="at once, by a second signal"):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_background_job_ends_by_both_signals(number: signal.Signals) -> None:
    """As a shell starts it: with Ctrl-C ignored."""
    code = (
        "from trainyard.signals import ending_by_signals, wait_for_signal\n"
        "with ending_by_signals():\n"
        "    try:\n"
        "        print('up', flush=True)\n"
        "        wait_for_signal()\n"
        "    except KeyboardInterrupt: print('bye')"
    )
    shell = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-c", code]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == "bye\n"
    assert process.returncode == 0


def test_a_signal_that_interrupts_no_system_call_ends_the_wait() -> None:
    """As one in another thread, or one that comes just before the wait begins."""

    def get_one() -> None:
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    thread = threading.Thread(target=get_one)
    with ending_by_signals():
        thread.start()
        with pytest.raises(Terminated):
            wait_for_signal()
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_ending_is_not_broken_off_by_the_second_signal_of_timeout(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ending_by_signals():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(number)
        monkeypatch.setattr(signals, "ONE_SIGNAL_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_sigterm_stays_sigterm_where_ray_raises_what_ctrl_c_does() -> None:
    """As `ray.get` does, in place of what the handler raised."""

    def wait() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Terminated:
            raise KeyboardInterrupt from None

    with pytest.raises(Terminated), ending_by_signals():
        wait()


def test_a_refused_server_leaves_the_handlers_of_a_program(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(UserError):
        serve_model(ServeConfig(model_name_or_path=str(tmp_path), port=-1))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def terminated_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace `ray.init`: it gets SIGTERM after it has set its handler, as Ray does first."""
    import ray

    def init(**_: Any) -> None:
        ray._private.utils.set_sigterm_handler(lambda *_: sys.exit(15))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("terminated_ray")
def test_handlers_stay_while_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="15"):  # of Ray: this process has no handler
        start_ray()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with StopSignals(tmp_path / "stop"), pytest.raises(Interrupted, match="no step was under way"):
        start_ray()
    with ending_by_signals(), pytest.raises(Terminated):
        start_ray()


def test_handlers_are_back_when_ray_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's C++ core replaces them in a way that Python does not see."""
    import ctypes

    import ray

    ignore = ctypes.c_void_p(signal.SIG_IGN)
    monkeypatch.setattr(
        ray, "init", lambda **_: ctypes.CDLL(None).signal(signal.SIGTERM, ignore) and None
    )
    with StopSignals(tmp_path / "stop"):
        start_ray()
        with pytest.raises(Interrupted, match="no step was under way"):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("terminated_ray")
def test_a_job_says_that_sigterm_ended_it(capsys: pytest.CaptureFixture[str]) -> None:
    def job(_: TrainConfig) -> dict[str, Any]:
        with ending_by_signals():
            start_ray()
        return {}

    with pytest.raises(SystemExit) as ended:
        run_job(TrainConfig, job, [])
    assert ended.value.code == 143
    assert capsys.readouterr() == ("", "stopped: by SIGTERM\n")
