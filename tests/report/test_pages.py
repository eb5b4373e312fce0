"""The pages in a real browser: headless Chromium, driven by Playwright.

Both are for tests only. Playwright is in the `dev` extra; the browser is the system's own
(chromium or google-chrome), for Playwright's would have to be downloaded.
"""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.sample_runs import write_confirming, write_run, write_sweep
from support.serving_locally import LocalModels, load, serving
from support.small_models import classifier

from trainyard.report.dashboard.job import LOOPBACK, DashboardConfig, _listen
from trainyard.report.dashboard.server import Dashboard, build_app, warm_up

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HOSTILE = "<script>document.title='owned'</script>"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or google-chrome: apt-get install chromium"
)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    write_sweep(path / "asha", 24)
    write_sweep(path / "worse", 12, verdict="worse")
    write_confirming(path / "confirming")
    write_run(path / "plain")
    write_run(path / ("long-name-" * 12), status="failed", upto=0.2, reason=HOSTILE, task=HOSTILE)
    write_run(path / "nan", status="diverged", upto=0, reason="the loss of step 4 is nan")
    return path


@pytest.fixture(scope="module")
def address(storage: Path) -> Iterator[str]:
    import uvicorn

    warm_up()
    listening = _listen(DashboardConfig(port=0))
    server = uvicorn.Server(
        uvicorn.Config(build_app(Dashboard(storage), list(LOOPBACK)), log_level="warning")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                  "--disable-background-networking", "--disable-component-update", "--disable-sync"],
        )  # fmt: skip
        yield found
        found.close()


@contextmanager
def page_at(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """A page that must say nothing on its console and ask nobody but its own server."""
    complaints: list[str] = []
    with browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}) as opened:
        page = opened.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda r: complaints.append(f"{r.url} {r.failure}"))
        own = url.split("/view")[0].split("/playground")[0]
        page.on(
            "request", lambda r: complaints.append(r.url) if not r.url.startswith(own) else None
        )
        page.goto(url)
        yield page
        said = [text for text in complaints if not text.startswith("data:")]
    assert not said


def draw_all(page: Any) -> int:
    """Scroll to each figure until it is drawn; how many there are."""
    figures = page.locator("figure")
    for i in range(figures.count()):
        # At once: a figure that is replaced by news while its place is waited for would be an error.
        figures.nth(i).evaluate("figure => figure.scrollIntoView()")
        figures.nth(i).locator("svg .mark-group").first.wait_for(state="attached", timeout=20_000)
    return int(figures.count())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_is_drawn_without_a_complaint(
    browser: Any, address: str, storage: Path, scheme: str, width: int
) -> None:
    view = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    figures = {"": 0, "asha": 9, "worse": 8, "confirming": 7, "asha/trials/trial-004": 3, "plain": 3,
               "nan": 0, "long-name-" * 12: 3}  # fmt: skip
    assert {path.name for path in storage.iterdir()} == {k for k in figures if k and "/" not in k}
    for key, count in figures.items():
        url = f"{address}/view/{key}" if key else f"{address}/"
        with page_at(browser, url, **view) as page:
            assert draw_all(page) == count
            assert page.title() != "owned"
            # The page itself never scrolls sideways; wide tables and charts do, in their place.
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), key
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(re.findall(r"\d+", ground)[0]) < 64) == (scheme == "dark")


def test_a_table_is_sorted_and_filtered_by_keyboard(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/view/asha") as page:
        table = page.locator(".table", has_text="Best evaluation of each trial")

        def column(index: int) -> list[str]:
            cells = f"rows => rows.filter(r => !r.hidden).map(r => r.cells[{index}].dataset.sort)"
            return list(table.locator("tbody tr").evaluate_all(cells))

        head = table.locator("thead th", has_text="f1")
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        scores = column(2)
        finite = [float(score) for score in scores if score != "nan"]
        assert finite == sorted(finite, reverse=True)
        assert scores[len(finite) :] == ["nan"] * 6
        page.keyboard.press("Space")
        assert head.get_attribute("aria-sort") == "ascending"
        assert column(2) == [*map(str, sorted(finite)), *["nan"] * 6]
        table.locator("input").focus()
        page.keyboard.type("pruned cosine")
        shown = table.locator("tbody tr:visible")
        assert 0 < shown.count() < 9
        assert all("Pruned" in text and "cosine" in text for text in shown.all_inner_texts())
        assert table.locator("output").inner_text() == f"{shown.count()} shown"


def test_the_whole_page_can_be_reached_by_tab(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/view/plain") as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to content"
        seen = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("document.activeElement.tagName"))
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none" or page.evaluate("document.activeElement.tagName") == "BODY"
        assert {"A", "BUTTON", "SUMMARY", "DIV"} <= seen


def test_news_come_by_themselves_and_disturb_nothing(
    browser: Any, address: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainyard.report.dashboard.server.FAST_SECONDS", 0.2)
    write_sweep(storage / "live", 14, status="running")
    try:
        with page_at(browser, f"{address}/view/live") as page:
            table = page.locator(".table", has_text="Best evaluation of each trial")
            table.locator("thead th", has_text="Trial").locator("button").press("Enter")
            table.locator("thead th", has_text="Trial").locator("button").press("Enter")
            table.locator("input").fill("trial-01")
            draw_all(page)  # or what is drawn meanwhile moves the page under the pointer
            page.get_by_text("Config").last.hover()
            page.mouse.down()
            write_run(storage / "live/trials/trial-010", trial={"index": 10}, sweep="live")
            page.wait_for_timeout(700)  # news do not come between press and release
            page.mouse.up()
            page.add_style_tag(content=".scroll { max-height: 5rem; }")
            # Found and used in one step: news may replace an element that a locator has just found.
            scroll = f"document.querySelector('#{table.get_attribute('id')} .scroll')"
            place = f"[{scroll}.scrollLeft, {scroll}.scrollTop]"
            page.evaluate(f"{scroll}.scrollTo(0, 30)")
            assert page.evaluate(place) == [0, 30]
            assert table.locator("tbody tr:visible th").first.inner_text() == "trial-013"
            assert page.locator("details[open]").count() == 1
            write_run(storage / "live/trials/trial-011", trial={"index": 11}, sweep="live")
            row = table.locator("tbody tr", has_text="trial-011")
            row.get_by_text("finished").wait_for(timeout=10_000)
            assert page.evaluate(place) == [0, 30]
            assert table.locator("tbody tr:visible th").first.inner_text() == "trial-013"
            assert table.locator("input").input_value() == "trial-01"
            assert page.evaluate("document.activeElement.tagName") in {"INPUT", "SUMMARY", "H2"}
            assert page.locator("details[open]").count() == 1
            on_their_way: list[Any] = []  # when updates are paused: they come, and are not shown
            page.route(page.url, lambda route: on_their_way.append(route))
            while not on_their_way:
                page.wait_for_timeout(50)
            write_run(storage / "live/trials/trial-012", trial={"index": 12}, sweep="live")
            page.get_by_role("button", name="Pause updates").press("Enter")
            for each in on_their_way:
                each.continue_()
            page.unroute(page.url)
            page.wait_for_timeout(700)
            assert page.locator("#news").inner_text() == "Updates are paused"
            assert "Finished" not in table.locator("tbody tr", has_text="trial-012").inner_text()
            page.get_by_role("button", name="Resume updates").press("Enter")
            row = table.locator("tbody tr", has_text="trial-012")
            row.get_by_text("finished").wait_for(timeout=10_000)
    finally:
        shutil.rmtree(storage / "live")


def test_an_exported_page_works_from_disk_and_prints(
    browser: Any, storage: Path, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(str(Dashboard(storage).page("asha", site=None)), encoding="utf-8")
    with page_at(browser, file.as_uri(), offline=True) as page:
        assert draw_all(page) == 9
        assert page.locator("a[href^='/']").count() == 0
        page.locator("thead button").first.press("Enter")
        assert page.pdf()[:4] == b"%PDF"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_playground_asks_a_model_by_keyboard(browser: Any, tmp_path: Path, scheme: str) -> None:
    host = load(classifier(tmp_path))
    view = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    try:
        with (
            serving(LocalModels({"mail": host})) as url,
            page_at(browser, f"{url}/playground#mail", **view) as page,
        ):
            page.locator("#f-text").fill("bana cola")
            page.locator("#ask").focus()
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            page.keyboard.press("Enter")
            page.locator(".bar").nth(2).wait_for()
            assert {"entailment", "neutral", "contradiction"} == set(
                page.locator(".bar span").all_inner_texts()
            )
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(re.findall(r"\d+", ground)[0]) < 64) == (scheme == "dark")
    finally:
        host.close()
