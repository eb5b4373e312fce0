"""The docs site: every page is built, no other host is asked, and pages pass accessibility rules."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.browser import BROWSER, chromium, files_of, page_at
from support.job_scripts import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the built site."""
    path = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "docs", path / "docs")
    config = path / "mkdocs.yml"
    config.write_text(yaml.safe_dump({**CONFIG, "site_dir": "site"}))
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(config)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return path / "site"


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    """Address of a server of the site."""
    with files_of(site) as address:
        yield address


def test_the_site_has_every_page() -> None:
    named = set(re.findall(r"[\w-]+\.md", yaml.safe_dump(CONFIG["nav"])))
    assert named == {page.name for page in PAGES}


def test_the_site_builds_and_asks_no_other_host(site: Path) -> None:
    built = [*site.glob("*.html")]
    assert len(built) >= len(PAGES)
    for page in built:
        assert not re.findall(r'\bsrc="(?:https?:)?//[^"]*', page.read_text()), page.name


def test_the_site_has_no_scripts_of_its_making(site: Path) -> None:
    assert not [*site.rglob("*.py")]


QUICK = ("index", "train", "how-it-works")
"""Pages that `make test` opens; axe takes seconds on the long ones."""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize(
    "name",
    [
        page.stem if page.stem in QUICK else pytest.param(page.stem, marks=pytest.mark.long)
        for page in PAGES
    ],
)
def test_a_page_passes_axe_and_leaves_the_console_empty(name: str, site: Path, server: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = []
    with chromium() as browser:
        for width, scheme in ((1280, "light"), (390, "dark")):
            view = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
            with page_at(browser, f"{server}/{name}.html", **view) as page:
                if "<table" in (site / f"{name}.html").read_text():  # its script wraps tables
                    page.locator(".md-typeset__scrollwrap").first.wait_for(state="attached")
                found += [
                    f"{width}: {rule['id']}: {node['html'][:120]}"
                    for rule in Axe().run(page).response["violations"]
                    for node in rule["nodes"]
                ]
    assert not found


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_search_finds_a_page(server: str) -> None:
    with chromium() as browser, page_at(browser, f"{server}/index.html") as page:
        page.get_by_role("button", name="Search").first.click()
        page.keyboard.type("telemetry")
        page.get_by_text("What is sent over the network").first.wait_for()
