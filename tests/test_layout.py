"""The order of the house: package faces, the standard library's `platform`, file sizes.

Import directions between packages are contracts of import-linter, in pyproject.toml.
"""

import ast
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "trainyard"

PACKAGES = {
    *(
        "cluster",
        "command",
        "config",
        "data",
        "doctor",
        "evaluation",
        "fleet",
        "glue",
        "inference",
        "metrics",
        "models",
        "serving",
        "storage",
    ),
    *("training", "tuning", "report.kit", "report.dashboard"),
}
"""Packages with a face: modules of others import from `trainyard.<package>` alone."""

HEAVY = {
    "torch", "ray", "transformers", "datasets", "evaluate", "accelerate", "pyarrow", "sklearn",
    "vl_convert", "jinja2", "fastapi", "uvicorn", "altair",
}  # fmt: skip


def dotted(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def package_of(module: str) -> str | None:
    """The package with a face that a module lies in; None at the root."""
    top, *parts = module.split(".")
    if top != "trainyard":
        return None
    return next(
        (p for p in (".".join(parts[:2]), parts[0] if parts else "") if p in PACKAGES), None
    )


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, at its top or anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_packages_use_each_other_by_their_faces_alone() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        home = package_of(dotted(path))
        for module in imports(path):
            other = package_of(module)
            if other and other != home and module != f"trainyard.{other}":
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    for path in (*(ROOT / "jobs").glob("*.py"), *(ROOT / "serve").glob("*.py")):
        for module in imports(path):
            other = package_of(module)
            if other and module != f"trainyard.{other}":
                wrong.append(f"{path.name} imports {module}")
    assert not wrong


def test_every_name_of_a_face_exists() -> None:
    code = "import importlib\n" + "\n".join(
        f"m = importlib.import_module('trainyard.{name}')\nassert m.__all__\n"
        "[getattr(m, name) for name in m.__all__]"
        for name in sorted(PACKAGES)
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 0, done.stderr


def test_the_loop_knows_no_ray() -> None:
    files = [*(PACKAGE / "training/worker").glob("*.py"), PACKAGE / "evaluation/scoring.py"]
    assert len(files) > 7
    for path in files:
        assert not any(module.split(".")[0] == "ray" for module in imports(path)), path


@pytest.mark.parametrize("package", sorted(PACKAGES | {"errors", "tasks", "stats"}))
def test_a_package_is_imported_without_cost(package: str, tmp_path: Path) -> None:
    code = (
        "import os, sys\nbefore = dict(os.environ)\n"
        f"import trainyard.{package}\n"
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
    others = {".venv", "build"}
    files = [path for path in ROOT.glob("*/**/*.py") if others.isdisjoint(path.parts)]
    assert len(files) > 30
    for path in files:
        lines = len(path.read_text().splitlines())
        assert lines <= (40 if path.parent.name == "jobs" else 500), f"{path} has {lines} lines"
