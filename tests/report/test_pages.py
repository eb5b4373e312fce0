"""The pages in a real browser: headless Chromium, driven by Playwright."""

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import screenshots
from support.browser import dashboard_of, draw_all, page_at
from support.sample_runs import write_confirming, write_run, write_sweep

from trainyard.report.dashboard.server import Dashboard
from trainyard.report.kit import Figure, Section, charts, render

HOSTILE = "<script>document.title='owned'</script>"


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
    with dashboard_of(storage) as found:
        yield found


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "dark"),
        (1280, "light"),
        pytest.param(390, "light", marks=pytest.mark.long),
        pytest.param(1280, "dark", marks=pytest.mark.long),
    ],
)
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
        table.locator("input[type=search]").focus()
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
        for _ in range(150):
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
            table.locator("input[type=search]").fill("trial-01")
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
            assert table.locator("input[type=search]").input_value() == "trial-01"
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


def score_axes(page: Any) -> list[list[str]]:
    """Tick labels of every axis titled by a score."""
    titled = "[aria-label*=\"titled 'f1'\"], [aria-label*=\"titled 'Score'\"]"
    return [
        axis.locator(".role-axis-label text").all_text_contents()
        for axis in page.locator(titled).all()
    ]


def test_equal_values_have_a_readable_axis(browser: Any, tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs" / "equal", 8, fixed=0.4631, confirmed=False)
    rows = [{"step": 0, "score": 0.4631, "name": "a"}, {"step": 9, "score": 0.4631, "name": "b"}]
    figures = [charts.lines(rows, "step", "score"), charts.dots(rows, "score", "name")]
    section = Section("Equal", [Figure("Equal values", chart) for chart in figures])
    pages = {
        "own.html": render("Equal", [section]),
        "sweep.html": str(Dashboard(tmp_path / "runs").page("equal", site=None)),
    }
    for name, html in pages.items():
        (tmp_path / name).write_text(html, encoding="utf-8")
        with page_at(browser, (tmp_path / name).as_uri()) as page:
            draw_all(page)
            found = score_axes(page)
            assert len(found) == {"own.html": 2, "sweep.html": 5}[name], found
            for labels in found:
                ticks = [float(label) for label in labels]
                assert len(set(ticks)) >= 3, labels
                assert 0.4 < min(ticks) < 0.4631 < max(ticks) < 0.52, labels


def test_tables_and_figures_can_be_downloaded(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/view/asha") as page:
        table = page.locator(".table", has_text="Best evaluation of each trial")
        table.locator("input[type=search]").fill("cosine")
        shown = table.locator("tbody tr:visible").count()
        with page.expect_download() as found:
            table.get_by_role("button", name="Download this table as CSV").click()
        assert found.value.suggested_filename.endswith(".csv")
        rows = list(csv.DictReader(found.value.path().open(newline="", encoding="utf-8")))
        assert len(rows) == shown > 0
        assert all(row["lr_scheduler_type"] == "cosine" for row in rows)
        best = max(float(row["f1"]) for row in rows if row["f1"])
        assert len(str(best)) > 8  # not as rounded on the page
        assert re.fullmatch(r"0\.\d+ to 0\.\d+", rows[0]["f1 (note)"])
        figure = page.locator("figure", has_text="(f1) of every trial")
        draw_all(page)
        with page.expect_download() as found:
            figure.get_by_role("button", name="Download this figure as SVG").click()
        svg = found.value.path().read_text(encoding="utf-8")
        assert "<svg" in svg
        assert "var(" not in svg
        assert "#c2570c" in svg  # of the best fifth, by its value


def test_a_loss_is_shown_on_a_logarithmic_scale(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/view/plain") as page:
        draw_all(page)
        figure = page.locator("figure", has_text="Training and validation loss")
        axis = figure.locator(".role-axis[aria-label*='Loss']")
        assert "linear scale" in str(axis.get_attribute("aria-label"))
        assert set(figure.locator(".role-legend-label text").all_text_contents()) == {
            "Training",
            "Validation",
        }
        figure.get_by_role("button", name="Logarithmic scale").press("Enter")
        page.wait_for_function(
            "e => e.querySelector('[aria-label*=\"log scale\"]')", arg=figure.element_handle()
        )
        assert (
            figure.get_by_role("button", name="Logarithmic scale").get_attribute("aria-pressed")
            == "true"
        )
        assert page.evaluate("document.activeElement.textContent") == "Log scale"


def test_runs_are_chosen_by_state_and_words(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/") as page:
        table = page.locator(".table", has_text="Runs outside sweeps")
        assert table.locator("tbody tr:visible").count() == 3
        table.get_by_label("State").select_option("Diverged")
        assert table.locator("tbody tr:visible th").all_inner_texts() == ["nan"]
        table.get_by_label("State").select_option("All")
        table.get_by_label("Filter").fill("plain")
        assert table.locator("tbody tr:visible th").all_inner_texts() == ["plain"]


def test_runs_are_compared_by_keyboard(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/") as page:
        table = page.locator(".table", has_text="Runs outside sweeps")
        go = table.get_by_role("button", name="Compare the chosen rows")
        assert go.is_disabled()
        for name in ("plain", "nan"):
            table.get_by_label(f"Choose {name}", exact=True).press("Space")
        assert go.inner_text() == "Compare 2"
        go.press("Enter")
        page.wait_for_url("**/compare?run=*")
        assert page.locator("h1").inner_text() == "2 runs compared"
        assert draw_all(page) == 3
        assert page.locator("tbody th", has_text="plain").count() == 1


def test_trials_of_a_sweep_are_compared_up_to_the_limit(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/view/asha") as page:
        table = page.locator(".table", has_text="Best evaluation of each trial")
        go = table.get_by_role("button", name="Compare the chosen rows")
        for n in range(8):
            table.get_by_label(f"Choose trial-00{n}", exact=True).press("Space")
        assert go.is_disabled()
        assert table.get_by_text("At most 7 can be compared at once.").is_visible()
        for n in range(6):
            table.get_by_label(f"Choose trial-00{n}", exact=True).press("Space")
        go.press("Enter")
        page.wait_for_url("**/compare?run=asha%2Ftrials%2Ftrial-006&*")
        assert page.locator("h1").inner_text() == "2 runs compared"
        assert page.locator("tbody th", has_text="asha/trials/trial-007").count() == 1


def visible_steps(figure: Any) -> list[float]:
    """Ends of the horizontal axis, rounded, as the chart describes them."""
    described = figure.locator(".role-axis[aria-label*='Step']").get_attribute("aria-label")
    ends = re.findall(r"from ([\d.,]+) to ([\d.,]+)", described)[0]
    return [float(end.replace(",", "")) for end in ends]


def shows(figure: Any, steps: list[float]) -> bool:
    """Wait until a figure shows these steps; return False if it does not."""
    for _ in range(100):
        if visible_steps(figure) == pytest.approx(steps, abs=2):
            return True
        figure.page.wait_for_timeout(100)
    return False


def test_a_curve_is_zoomed_by_keys_and_buttons_and_stays_zoomed(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/view/plain") as page:
        draw_all(page)
        figure = page.locator("figure", has_text="Training and validation loss")
        low, high = visible_steps(figure)
        span = high - low
        labels = figure.locator(".role-axis[aria-label*='Step'] .role-axis-label text")
        whole = set(labels.all_text_contents())
        figure.get_by_role("button", name="Zoom in").click()
        assert shows(figure, [low + span / 4, high - span / 4])
        page.keyboard.press("ArrowRight")
        moved = [low + span * 0.35, high - span * 0.15]
        assert shows(figure, moved)
        # Both draw the figure again.
        before = figure.locator(".mark-line path").first.get_attribute("d")
        figure.get_by_label("Smoothing").select_option("Strong")
        page.wait_for_function(
            "([e, d]) => ![d, undefined].includes(e.querySelector('.mark-line path')?.getAttribute('d'))",
            arg=[figure.element_handle(), before],
        )
        assert shows(figure, moved)
        figure.get_by_role("button", name="Logarithmic scale").click()
        figure.locator("[aria-label*='log scale']").first.wait_for(state="attached")
        assert shows(figure, moved)
        page.keyboard.press("-")
        assert shows(figure, [moved[0] - span / 4, moved[1] + span / 4])
        assert set(labels.all_text_contents()) != whole
        page.keyboard.press("0")
        for _ in range(100):
            if set(labels.all_text_contents()) == whole:
                break
            page.wait_for_timeout(100)
        assert set(labels.all_text_contents()) == whole
        assert page.evaluate("document.activeElement.textContent") == "Log scale"


def test_a_zoomed_curve_is_panned_by_touch(browser: Any, address: str) -> None:
    view = {"viewport": {"width": 390, "height": 800}, "has_touch": True}
    with page_at(browser, f"{address}/view/plain", **view) as page:
        draw_all(page)
        figure = page.locator("figure", has_text="Training and validation loss")
        low, high = visible_steps(figure)
        span = (high - low) / 2
        figure.get_by_role("button", name="Zoom in").tap()
        assert shows(figure, [low + span / 2, high - span / 2])
        figure.locator("svg").scroll_into_view_if_needed()
        box = figure.locator("svg .background").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        devices = page.context.new_cdp_session(page)
        for kind, left in (("Start", 0), ("Move", 20), ("Move", box["width"] / 4), ("End", None)):
            points = [] if left is None else [{"x": x - left, "y": y}]
            devices.send(
                "Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points}
            )
        for _ in range(100):
            if visible_steps(figure)[0] > low + span / 2 + 0.1 * span:
                break
            page.wait_for_timeout(100)
        found = visible_steps(figure)
        assert found == pytest.approx([low + span * 0.75, high - span * 0.25], abs=0.1 * span)


def test_any_hash_leaves_a_page_of_the_dashboard_alive(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/view/plain#50%") as page:
        assert draw_all(page) == 3


def test_a_curve_is_smoothed(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/view/plain") as page:
        draw_all(page)
        figure = page.locator("figure", has_text="Training and validation loss")
        before = figure.locator(".mark-line path").first.get_attribute("d")
        figure.get_by_label("Smoothing").select_option("Strong")
        page.wait_for_function(
            "([e, d]) => e.querySelector('.mark-line path')?.getAttribute('d') !== d",
            arg=[figure.element_handle(), before],
        )
        assert page.evaluate("document.activeElement.tagName") == "SELECT"
        assert figure.get_by_label("Smoothing").input_value() == "0.9"


def test_a_link_into_a_folded_section_opens_it(browser: Any, address: str, storage: Path) -> None:
    (storage / "plain" / "model").mkdir(exist_ok=True)
    (storage / "plain" / "model" / "README.md").write_text("A model of sentences.")
    with page_at(browser, f"{address}/view/plain") as page:
        assert not page.get_by_text("A model of sentences.").is_visible()
        page.get_by_role("link", name="On this page").press("Enter")
        page.get_by_text("A model of sentences.").wait_for()


def test_pictures_of_the_docs_cut_nothing_at_their_upper_edge(browser: Any, address: str) -> None:
    with page_at(browser, f"{address}/view/asha") as page:
        screenshots.prepare(page, "sweep")
        assert page.evaluate("scrollY") == 0


def test_no_legend_is_cut(browser: Any, tmp_path: Path) -> None:
    names = [f"a rather long name of a metric, number {i}" for i in range(6)]
    rows = [
        {"step": x, "value": i + x, "series": name} for i, name in enumerate(names) for x in (0, 1)
    ]
    chart = charts.lines(rows, "step", "value", "series")
    file = tmp_path / "legend.html"
    file.write_text(render("Legend", [Section("A", [Figure("Lines", chart)])]), encoding="utf-8")
    for width in (390, 1280):
        with page_at(browser, file.as_uri(), viewport={"width": width, "height": 800}) as page:
            draw_all(page)
            labels = page.locator(".role-legend-label text")
            assert labels.all_text_contents() == names
            box = page.locator("figure svg").bounding_box()
            for each in labels.all():
                found = each.bounding_box()
                assert found["x"] + found["width"] <= box["x"] + box["width"] + 1


def test_a_report_is_served_without_an_origin(browser: Any, address: str, storage: Path) -> None:
    """Its scripts run and draw, but cannot read the dashboard's other pages."""
    chart = charts.dots([{"score": 0.5, "name": "a"}], "score", "name")
    page_text = render("Report", [Section("A", [Figure("Dots", chart)])])
    folder = storage / "judged"
    folder.mkdir()
    (folder / "evaluation.json").write_text('{"task": "mrpc", "score": 0.8123, "model": "a/b"}')
    titles = "() => document.title = 'read', () => document.title = 'refused'"
    probe = f"<script>fetch('/').then({titles})</script>"
    (folder / "report.html").write_text(page_text)
    try:
        with page_at(browser, f"{address}/") as page:
            row = page.locator(".table", has_text="Evaluations, data examinations").locator(
                "tbody tr"
            )
            assert "0.8123" in row.inner_text()
            row.get_by_role("link").click()
            assert draw_all(page) == 1
            assert page.title() == "Report · Trainyard"
        (folder / "report.html").write_text(
            page_text.split("<meta http-equiv")[0] + "</head>" + probe
        )
        with browser.new_context() as context:
            page = context.new_page()
            page.goto(f"{address}/report/judged")
            page.wait_for_function("document.title === 'refused'")
            assert page.evaluate("origin") == "null"
    finally:
        shutil.rmtree(folder)
