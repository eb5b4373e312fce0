"""Signals: one of `timeout` counts once, and `serve` ends by SIGTERM as by Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainyard import signals
from trainyard.errors import Interrupted
from trainyard.signals import StopSignals


def test_two_signals_at_once_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = tmp_path / "stop"
    with StopSignals(request) as stop, stop.training():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.exists()
        monkeypatch.setattr(signals, "ONE_SIGNAL_SECONDS", 0.0)
        with pytest.raises(Interrupted, match="at once, by a second signal"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_background_job_ends_by_both_signals(number: signal.Signals) -> None:
    """As a shell starts it: with Ctrl-C ignored."""
    code = (
        "import threading; from trainyard.signals import end_by_signals; end_by_signals()\n"
        "try:\n"
        "    print('up', flush=True)\n"
        "    threading.Event().wait(60)\n"
        "except KeyboardInterrupt: print('bye')"
    )
    shell = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-c", code]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == "bye\n"
    assert process.returncode == 0
