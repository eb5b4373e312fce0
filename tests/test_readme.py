"""The README's commands parse, and the files it names exist."""

import re
import shlex

import pytest
import yaml
from support.job_scripts import JOBS, ROOT, config_of, script

from trainyard.serving.check import check_config
from trainyard.serving.options import HostOptions

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
COMMANDS = re.findall(
    rf"(?:python jobs/|trainyard )({'|'.join(JOBS)})(?:\.py)?\b ?((?:.*\\\n)*.*)",
    f"{README}\n{MAKEFILE}".replace("`", "\n"),
)


@pytest.mark.parametrize(("job", "command"), COMMANDS)
def test_a_command_parses(job: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    flags = shlex.split(command.replace("\\\n", " "), comments=True)
    if "--help" not in flags:
        assert isinstance(config_of(job, *flags), script(job)[0])


def test_serve_commands_parse() -> None:
    hosted = re.findall(r"serve run serve\.app:build (.*)", README)
    assert hosted
    for arguments in hosted:
        given = dict(argument.split("=", 1) for argument in shlex.split(arguments))
        assert HostOptions.parse(given, "README").model
    for path in re.findall(r"serve\.py check (\S+)|serve/app\.py check (\S+)", README):
        check_config(yaml.safe_load((ROOT / "".join(path)).read_text()), "README")


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 12
    assert {job for job, _ in COMMANDS} == set(JOBS)


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"\]\(([a-z_/]+\.[a-z]+)\)", README)
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_presets_are_configs() -> None:
    presets = list((ROOT / "jobs/configs").glob("*.yaml"))
    assert presets
    for preset in presets:
        assert config_of("train", "--config", str(preset)).task


def test_the_runtime_environment_is_what_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**yaml.safe_load((ROOT / "runtime_env.yaml").read_text()))
    assert environment["env_vars"]["PYTHONPATH"] == "platform"
