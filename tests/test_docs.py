"""The docs: commands parse, links lead somewhere, generated parts are current, the site builds."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from result_tables import TABLES, rewrite
from support.job_scripts import JOBS as SCRIPTS
from support.job_scripts import ROOT, config_of, script

from trainyard.command import JOBS, parse
from trainyard.serving.check import check_config
from trainyard.serving.options import HostOptions

SITE = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *SITE]
GENERATED = runpy.run_path(str(ROOT / "docs" / "generate.py"))
COMMAND = re.compile(r"^(?:\|.*`)?trainyard ([a-z-]+)((?: [^\n`]*\\\n)*[^\n`]*)", re.MULTILINE)
"""A command in a code block or in a table; what a sentence quotes may be part of one."""


def commands() -> Iterator[tuple[str, str, str]]:
    """Yield (page, job, flags) of every `trainyard` command in the pages."""
    for page in PAGES:
        if page.name != "flags.md":
            for job, flags in COMMAND.findall(page.read_text()):
                yield page.name, job, flags


@pytest.mark.parametrize(("page", "job", "flags"), [*commands()])
def test_a_command_parses(page: str, job: str, flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(flags.replace("\\\n", " "), comments=True)
    assert job in JOBS, f"{page}: trainyard {job}"
    if "--help" in words or "--config" in words or (words and words[0] in (JOBS[job].verbs or {})):
        return
    config = JOBS[job].config_class()
    assert isinstance(parse(config, JOBS[job].flags(words)), config)


SUBMITTED = [
    (page.name, job, flags)
    for page in [*PAGES, ROOT / "Makefile"]
    for job, flags in re.findall(
        rf"python jobs/({'|'.join(SCRIPTS)})\.py ((?:.*\\\n)*.*)",
        page.read_text().replace("`", "\n"),
    )
]


@pytest.mark.parametrize(("page", "job", "flags"), SUBMITTED)
def test_a_submitted_command_parses(
    page: str, job: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(flags.replace("\\\n", " "), comments=True)
    assert isinstance(config_of(job, *words), script(job)[0]), page


def test_serve_commands_parse() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    hosted = re.findall(r"serve run trainyard\.serving\.app:build (.*)", text)
    assert hosted
    for arguments in hosted:
        given = dict(argument.split("=", 1) for argument in shlex.split(arguments))
        assert HostOptions.parse(given, "the docs").model
    check_config(yaml.safe_load((ROOT / "serve/config.yaml").read_text()), "the docs")
    shown = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/serve.md").read_text(), re.M | re.S)
    assert shown
    for text in shown:
        check_config(yaml.safe_load(text), "docs/serve.md")


def test_every_job_is_taught() -> None:
    assert {job for _, job, _ in commands()} >= set(JOBS)


@pytest.mark.parametrize("page", GENERATED["pages"](), ids=lambda page: page.name)
def test_generated_parts_are_current(page: Path) -> None:
    assert GENERATED["pages"]()[page] == page.read_text(), "run python docs/generate.py"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_replaces_what_was_in_its_place(name: str) -> None:
    text = rewrite(f"a\n<!-- table: {name} -->\nstale row\n<!-- end -->\nb")
    assert "stale row" not in text
    assert (text[:2], text[-2:]) == ("a\n", "\nb")
    assert rewrite(text) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), f"{page.name} links to {target}"
        if anchor:
            assert anchor[1:] in headings(path), f"{page.name} links to {target}{anchor}"


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles
    }


def test_the_site_has_every_page() -> None:
    named = set(re.findall(r"[\w-]+\.md", yaml.safe_dump(site()["nav"])))
    assert named == {page.name for page in SITE}


def site() -> dict[str, object]:
    """Read mkdocs.yml."""
    found: dict[str, object] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    return found


def test_the_site_builds_and_asks_no_other_host(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    config = tmp_path / "mkdocs.yml"
    config.write_text(yaml.safe_dump({**site(), "site_dir": "site"}))
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(config)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    built = [*(tmp_path / "site").glob("*.html")]
    assert len(built) >= len(SITE)
    for page in built:
        assert not re.findall(r'\bsrc="(?:https?:)?//[^"]*', page.read_text()), page.name


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_presets_are_configs() -> None:
    presets = list((ROOT / "jobs/configs").glob("*.yaml"))
    assert presets
    for preset in presets:
        assert config_of("train", "--config", str(preset)).task


def test_the_runtime_environment_is_what_ray_takes() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**yaml.safe_load((ROOT / "runtime_env.yaml").read_text()))
    assert environment["env_vars"]["PYTHONPATH"] == "platform"
