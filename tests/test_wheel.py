"""What the wheel holds, without installing it; `make test-wheel` installs it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
               "-w", str(folder), str(ROOT)]  # fmt: skip
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("trainyard-*.whl")
    with zipfile.ZipFile(wheel) as file:
        (entry,) = (name for name in file.namelist() if name.endswith("entry_points.txt"))
        assert "trainyard = trainyard.command:main" in file.read(entry).decode()
        return file.namelist()


def test_the_wheel_holds_one_package(names: list[str]) -> None:
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"trainyard"}


@pytest.mark.parametrize(
    "part",
    [
        "command/jobs.py", "command/quickstart.yaml", "serving/app.py", "serving/example.yaml", "py.typed",
        "__init__.pyi", "storage/__init__.pyi", "serving/gateway/playground.html",
    ],
)  # fmt: skip
def test_the_wheel_holds_what_the_command_needs(names: list[str], part: str) -> None:
    assert f"trainyard/{part}" in names


def test_every_module_is_in_the_wheel(names: list[str]) -> None:
    sources = ROOT / "platform"
    modules = {str(path.relative_to(sources)) for path in sources.glob("trainyard/**/*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
