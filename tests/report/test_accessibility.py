"""Every page, for readers who use a keyboard, a screen reader, a phone or a dark screen."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import accessibility_faults, dashboard_of, draw_all, page_at
from support.sample_reports import evaluation_page, glue_page
from support.sample_runs import write_run, write_sweep
from support.tiny import WORDS

from trainyard.doctor import DataDoctorConfig, examine_data
from trainyard.report.kit import Section, Table, Text, render

PAGES = {
    "/": 0, "/view/sweep": 9, "/view/run": 5, "/compare?run=run&run=other": 3,
    "/report/evaluation": 4, "/report/suite": 2, "/report/doctor": 1,
}  # fmt: skip
"""Figures of each page."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[str]:
    storage = tmp_path_factory.mktemp("yard")
    write_sweep(storage / "sweep", 24)
    write_run(storage / "other", quality=0.8)
    run = write_run(storage / "run")
    usage = [{"seconds": 5.0 * n, "cpu_percent": 50 + n, "memory_bytes": 2**31} for n in range(9)]
    (run / "usage.jsonl").write_text("".join(json.dumps(row) + "\n" for row in usage))
    (run / "log.txt").write_text("tokenized 408 rows\n")
    reports = (("evaluation", evaluation_page()), ("suite", glue_page(storage)))
    for (name, html), file in zip(reports, ("evaluation.json", "glue.json"), strict=True):
        (storage / name).mkdir()
        (storage / name / "report.html").write_text(html)
        (storage / name / file).write_text('{"task": "mnli"}')
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(rng.choice(WORDS, 9)), "label": "ab"[i % 2]} for i in range(80)]
    data = storage / "own.jsonl"
    data.write_text(
        "\n".join(json.dumps(row) for row in [*rows, *rows[:3], {**rows[4], "text": " "}])
    )
    with pytest.MonkeyPatch.context() as patch:  # so few rows are tokenized in this process
        patch.setattr("trainyard.doctor.data.run.ray_session", lambda _: contextlib.nullcontext())
        examine_data(
            DataDoctorConfig(
                train_file=str(data), model_name_or_path=str(tiny_model), max_length=40, run_name="doctor",
                storage_path=str(storage),
            )
        )  # fmt: skip
    with dashboard_of(storage) as found:
        yield found


@pytest.mark.parametrize(
    ("width", "scheme"),
    [(390, "dark"), *(pytest.param(x, "light", marks=pytest.mark.long) for x in (800, 1280))],
)
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_accessible(
    browser: Any, address: str, path: str, width: int, scheme: str
) -> None:
    view = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with page_at(browser, address + path, **view) as page:
        assert draw_all(page) == PAGES[path]
        assert accessibility_faults(page) == []
        for legend in page.locator(".role-legend-label text").all():
            label, chart = legend.bounding_box(), legend.locator("xpath=ancestor::*[name()='svg']")
            box = chart.last.bounding_box()
            assert label["x"] + label["width"] <= box["x"] + box["width"] + 1, legend.text_content()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_faults_of_a_page_are_found(browser: Any, tmp_path: Path) -> None:
    """The check itself: each of these lines breaks a rule."""
    page_text = render("Page", [Section("A", [Text("a note", "note"), Table("T", ["a"], [["x"]])])])
    faulty = """<h4>deep</h4><input><button></button><p id="main" style="color:#ccc">pale</p>
        <table><tr><th>a</th></tr></table><img src="data:,">"""
    (tmp_path / "page.html").write_text(page_text.replace("</main>", f"{faulty}</main>"))
    with browser.new_context() as context:
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        found = accessibility_faults(page)
    for expected in ("heading skips a level", "no name: input", "no name: button", "contrast 1.",
                     "no caption", "th without scope", "id main occurs twice", "without alt"):  # fmt: skip
        assert [fault for fault in found if expected in fault], (expected, found)
    assert any(fault.startswith("axe image-alt: ") for fault in found)
    assert len([fault for fault in found if not fault.startswith("axe ")]) == 8, found
