"""`benchmarks/gpu.py` and the tests of GPUs, tried on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import PIECES, gpu_table
from markdown_tables import source
from support.job_scripts import ROOT


def test_a_source_tells_uncommitted_changes_and_stands_once() -> None:
    commit = "0123456789abcdef"
    clean = {"command": "python bench.py", "versions": {"commit": commit}}
    changed = {**clean, "versions": {"commit": f"{commit}+"}}
    line = "`python bench.py`, commit 0123456789"
    assert source(clean, changed, clean) == f"\n{line}.<br>\n{line} with uncommitted changes.\n"


def test_the_tests_of_a_gpu_are_tried_on_a_cpu() -> None:
    """All files are imported; the tests that take no second run."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "--device",
         "cpu", "-k", "manual_seed or streams", "tests/gpu"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize(
    "pieces",
    [["speed"], pytest.param(["glue", "deterministic", "serving"], marks=pytest.mark.long)],
)
def test_a_piece_runs_and_fills_the_table(pieces: list[str], tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--only", *pieces,
         "--results", str(tmp_path)],
        cwd=ROOT, check=True, timeout=500,
    )  # fmt: skip
    filled = gpu_table(tmp_path)
    for piece in PIECES:
        assert f"| {piece} | " in filled
        assert ((tmp_path / f"gpu-{piece}.json").exists()) == (piece in pieces)
        assert (f"--only {piece}`" in filled.partition("\n\n")[0]) == (piece not in pieces)
    for piece in pieces:
        result = json.loads((tmp_path / f"gpu-{piece}.json").read_text())
        assert result["command"]
        for found in result["checks"]:
            assert f"| {piece} | {found['check']} | {found['value']} | " in filled
            assert ("**failed**" in filled) >= (not found["ok"])
