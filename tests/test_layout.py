"""What keeps the house in order: import directions, the standard library's `platform`, small files."""

import ast
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "trainyard"

LAYERS = [
    set(row.split())
    for row in """
    errors tasks metrics stats config cli demo versions files stopwatch batching
    gradients sources checkpoints lease
    runs
    remote tokens own_data columns progress strategies modeling export cluster processor report
    autoscaler
    workers engines
    splits scoring state predictors
    data journal results
    session data_doctor
    loop trainer_loop
    launch
    doctor
    training evaluation batch_inference
    suite tuning serving
    """.strip().splitlines()
]
"""Modules import from their own row and from those above it, never from below."""

HEAVY = {
    "torch", "ray", "transformers", "datasets", "evaluate", "accelerate", "pyarrow", "sklearn",
    "vl_convert", "jinja2", "fastapi", "uvicorn",
}  # fmt: skip


def modules() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name != "__init__":
            found.setdefault(name, []).append(path)
    return found


def imports(path: Path, *, everywhere: bool) -> set[str]:
    """Dotted names that a file imports: at its top, or anywhere; never those for types alone."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def test_every_module_has_its_layer() -> None:
    assert set(modules()) == set().union(*LAYERS)


@pytest.mark.parametrize("name", sorted(set().union(*LAYERS)))
def test_arrows_point_one_way(name: str) -> None:
    for path in modules()[name]:
        for imported in imports(path, everywhere=True):
            parts = imported.split(".")
            if parts[0] == "trainyard" and parts[1:] and parts[1] in set().union(*LAYERS):
                assert layer(parts[1]) <= layer(name), f"{path.name} imports {imported}"


def test_the_loop_knows_no_ray() -> None:
    for name in (
        "loop",
        "trainer_loop",
        "session",
        "state",
        "journal",
        "scoring",
        "batching",
        "gradients",
    ):
        for path in modules()[name]:
            assert not any(i.split(".")[0] == "ray" for i in imports(path, everywhere=True))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_nothing_heavy_is_imported_at_the_top(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(path, everywhere=False)}
    assert not found & HEAVY


def test_importing_everything_loads_nothing_heavy_and_changes_nothing(tmp_path: Path) -> None:
    names = ", ".join(f"trainyard.{name}" for name in modules())
    code = (
        "import os, sys\nbefore = dict(os.environ)\n"
        f"import {names}\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\nassert not heavy, heavy\n"
        "assert dict(os.environ) == before\n"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_the_standard_library_keeps_its_platform_module() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert platform.__file__ is not None
    assert Path(platform.__file__).parent != ROOT
    code = "import platform; assert platform.system(); import trainyard"
    for folder in (ROOT, ROOT / "jobs"):
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def test_files_stay_small() -> None:
    files = [path for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts]
    assert len(files) > 30
    for path in files:
        lines = len(path.read_text().splitlines())
        assert lines <= (40 if path.parent.name == "jobs" else 310), f"{path} has {lines} lines"
