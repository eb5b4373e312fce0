"""An evaluation that is stopped while its workers predict: one sentence, and nothing left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.job_scripts import ROOT
from support.small_models import classifier


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_evaluation_says_what_stopped_it(number: signal.Signals, tmp_path: Path) -> None:
    rows = "".join(f"{'so na ' * 20}{row},{'xy'[row % 2]}\n" for row in range(40_000))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    classifier(tmp_path / "model", labels=("x", "y"))
    process = subprocess.Popen(
        [sys.executable, "-c", "from trainyard.command import main; main()", "eval",
         "--model-name-or-path", "./model", "--validation-file", "rows.csv"],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    while "predict:" not in said:
        character = process.stderr.read(1)
        assert character, said
        said += character
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert stderr.splitlines()[-1] == f"stopped: by {name}", stderr
    assert (process.returncode, stdout) == (128 + number, "")
    assert "Traceback" not in stderr
    assert not [path for path in (tmp_path / "runs").glob("*") if path.name != ".cache"]
