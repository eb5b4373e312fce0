"""Where facts and words stand on a page, by the width of the window."""

from pathlib import Path
from typing import Any

import pytest
from support.browser import page_at

from trainyard.report.kit import Cell, Facts, Section, Table, Value, render

FACTS = """() => [...document.querySelectorAll("dl")].map((list) => {
  const rows = {};
  for (const cell of list.children) {
    const box = cell.getBoundingClientRect();
    (rows[Math.round(box.top)] ??= []).push(box.width / list.clientWidth);
  }
  return Object.values(rows);
})"""


@pytest.mark.parametrize("wide", [True, False])
def test_no_fact_stands_alone_at_any_width(browser: Any, tmp_path: Path, wide: bool) -> None:
    """A row of one fact is as wide as the list: the first, or each fact on a phone."""
    counts = range(1, 14)
    sections = [
        Section(str(n), [Facts([(str(i), i) for i in range(n)], wide=wide)]) for n in counts
    ]
    (tmp_path / "facts.html").write_text(render("Facts", sections), encoding="utf-8")
    with page_at(browser, (tmp_path / "facts.html").as_uri()) as page:
        for width in (390, 600, 700, 800, 1000, 1200, 1600):
            page.set_viewport_size({"width": width, "height": 800})
            for count, rows in zip(counts, page.evaluate(FACTS), strict=True):
                assert sum(map(len, rows)) == count
                alone = [row[0] for row in rows[1:] if len(row) == 1]
                assert all(share > 0.9 for share in alone), (width, count, rows)
                assert not (wide and alone), (width, count, rows)


def test_words_are_not_broken_on_a_phone(browser: Any, tmp_path: Path) -> None:
    rows: list[list[Cell | Value]] = [
        ["contradiction", "entailment of a word", 0.5, 12, 13, 0.25, 3],
        ["a" * 40, "b", 1, 2, 3, 4, 5],
    ]
    columns = ["Class", "Text", "Precision", "Rows", "Predicted", "Recall", "F1"]
    table = Table("Scores", columns, rows)
    (tmp_path / "table.html").write_text(render("T", [Section("A", [table])]), encoding="utf-8")
    view = {"viewport": {"width": 390, "height": 800}}
    with page_at(browser, (tmp_path / "table.html").as_uri(), **view) as page:
        lines = """e => {
          const range = document.createRange(); range.selectNodeContents(e);
          return new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size; }"""
        assert page.locator("tbody th").first.evaluate(lines) == 1
        assert page.locator("tbody th").last.evaluate(lines) > 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_path_is_broken_after_a_slash() -> None:
    link = Cell("sweep/trials/trial-0", href="/view/sweep/trials/trial-0")
    page = render("T", [Section("A", [Table("Runs", ["Run"], [[link]])])])
    assert '<a href="/view/sweep/trials/trial-0">sweep/<wbr>trials/<wbr>trial-0</a>' in page
