"""docker/: what the images copy and install, and the commands of the compose file."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainyard.command import JOBS, parse
from trainyard.report.dashboard import DashboardConfig
from trainyard.serving import ServeConfig

ROOT = Path(__file__).parents[1]
IMAGES = [ROOT / "docker/Dockerfile.cpu", ROOT / "docker/Dockerfile.gpu"]


def lines(image: Path, instruction: str) -> list[str]:
    """Return the arguments of every `instruction`; continued lines are joined."""
    joined = image.read_text().replace("\\\n", " ")
    return re.findall(rf"^{instruction} (.*)$", joined, re.MULTILINE)


def entries(name: str) -> set[str]:
    """Return the patterns of a file such as .gitignore."""
    return {line.strip("/") for line in (ROOT / name).read_text().splitlines()}


def test_no_image_gets_what_git_ignores() -> None:
    assert entries(".gitignore") <= entries(".dockerignore")


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_what_an_image_copies_is_in_the_repository(image: Path) -> None:
    copies = [words.split() for words in lines(image, "COPY") if "--from" not in words]
    copied = {source for *sources, _ in copies for source in sources}
    assert copied.isdisjoint(entries(".dockerignore"))
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert copied == {
        "constraints.txt", "pyproject.toml", "platform", project["readme"], *project["license-files"]
    }  # fmt: skip


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_opens_the_ports_of_its_commands(image: Path) -> None:
    ports = {ServeConfig(model_name_or_path="model").port, DashboardConfig().port}
    assert {int(port) for port in lines(image, "EXPOSE")[0].split()} == ports


def services() -> dict[str, Any]:
    """Return the services of the compose file, with the default of each variable."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker/compose.yaml").read_text())
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


@pytest.mark.parametrize("name", ["dashboard", "server"])
def test_a_service_runs_a_command_on_what_it_mounts(name: str) -> None:
    service = services()[name]
    job, *flags = service["command"]
    config = parse(JOBS[job].config_class(), flags)
    assert service["ports"] == [f"127.0.0.1:{config.port}:{config.port}"]
    assert config.host == "0.0.0.0"
    mounted = {volume["target"].removeprefix("/data/") for volume in service["volumes"]}
    named = {flag.partition("/")[0] for flag in flags if not flag.startswith("-")}
    assert mounted == named - {"0.0.0.0"}
    assert not any(volume["bind"]["create_host_path"] for volume in service["volumes"])


def test_each_service_builds_its_image_alone() -> None:
    """`docker compose up server` starts no other service, so it must know how to build."""
    for service in services().values():
        build = service["build"]
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).is_file()
