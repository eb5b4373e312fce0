"""The README's commands parse, and the files it names exist."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from trainyard.cli import parse
from trainyard.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python jobs/train\.py ((?:.*\\\n)*.*)", README.replace("`", "\n"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command: str) -> None:
    flags = shlex.split(command.replace("\\\n", " "))
    if "--help" not in flags:
        assert isinstance(parse(TrainConfig, flags), TrainConfig)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 4


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"\]\(([a-z_/]+\.[a-z]+)\)", README)
    assert len(named) >= 5
    assert all((ROOT / name).is_file() for name in named)


def test_presets_are_configs() -> None:
    presets = list((ROOT / "jobs/configs").glob("*.yaml"))
    assert presets
    for preset in presets:
        assert parse(TrainConfig, ["--config", str(preset)]).task


def test_the_runtime_environment_is_what_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**yaml.safe_load((ROOT / "runtime_env.yaml").read_text()))
    assert environment["env_vars"]["PYTHONPATH"] == "platform"
