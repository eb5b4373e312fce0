"""Gateway and replica are two processes: neither imports the other's modules, nor what imports them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("side", "other"), [("gateway", "replica"), ("replica", "gateway"), ("transport", "gateway")]
)
def test_one_side_does_not_load_the_other(side: str, other: str) -> None:
    """By all modules of one side: what they import at their top, and all that follows from it."""
    code = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module('trainyard.serving.{side}')\n"
        "for found in pkgutil.iter_modules(getattr(package, '__path__', [])):\n"
        "    importlib.import_module(f'{package.__name__}.{found.name}')\n"
        f"names = [name for name in sys.modules if name.startswith('trainyard.serving.{other}')]\n"
        "both = [name for name in ('trainyard.serving.app', 'trainyard.serving.check',\n"
        "        'trainyard.serving.local') if name in sys.modules]\n"
        "assert not names + both, names + both\n"
        f"if {side!r} == 'gateway':\n"
        "    heavy = {'torch', 'transformers', 'openvino'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT / "platform"), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
