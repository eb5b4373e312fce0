"""The page shell: one safe, self-contained file; what a browser does with it is in test_pages."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from trainyard.report.kit import charts
from trainyard.report.kit.page import (
    Cell,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    markdown,
    number,
    render,
    static_text,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'`{{ 7*7 }}"


class Elements(HTMLParser):
    """The start tags of a page, and what stands in its data scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[Any] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == ("script", {"type": "application/json"}) and data.strip():
            self.data.append(json.loads(data))


def everywhere(text: str) -> str:
    """A page that holds `text` in each place that takes one."""
    rows = [{"model": text, "F1": 0.5, "low": 0.4, "high": 0.6}]
    return render(
        text,
        [
            Section(text, [Table(text, [text, "b"], [[text, Cell(text, note=text)]]), Text(text)]),
            Section("Facts", [Facts([(text, text)]), Text(text, "code"), Table(text, ["a"], [])]),
            Section(
                "Figure",
                [Figure(text, charts.dots(rows, "F1", "model", low="low", high="high"), text)],
            ),
        ],
        subtitle=text,
        crumbs=[(text, "/")],
    )  # fmt: skip


def test_whatever_is_put_in_stays_text() -> None:
    plain, hostile = Elements(everywhere("plain")), Elements(everywhere(HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert HOSTILE in json.dumps(hostile.data, ensure_ascii=False).replace('\\"', '"')
    assert not any(name.startswith("on") for _, attrs in hostile.tags for name in attrs)
    assert "49" not in everywhere("{{ 7*7 }}").partition("<body")[2].partition("<script")[0]


def test_the_file_is_whole_in_itself_and_may_load_nothing() -> None:
    html = everywhere("plain")
    tags = Elements(html).tags
    assert not [attrs for tag, attrs in tags if tag in ("script", "img") and "src" in attrs]
    assert all(str(attrs["href"]).startswith("data:") for tag, attrs in tags if tag == "link")
    policy = next(str(a["content"]) for _, a in tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert policy.count("'sha256-") == 2
    assert not re.search(r"script-src[^;]*'unsafe", policy)


def test_vega_is_put_in_only_where_there_is_a_figure() -> None:
    plain = render("Plain", [Section("A", [Text("no figure")])])
    assert len(plain) < 40_000
    assert "vegaEmbed=" not in plain
    assert everywhere("figure").count("vegaEmbed=") == 1


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert(1)",
        "//evil.example",
        "data:text/html,x",
        "http://127.0.0.1:80@evil.example/",
    ],
)
def test_only_safe_links_are_taken(link: str) -> None:
    with pytest.raises(ValueError, match="must start with https://"):
        Cell("text", href=link)


def test_missing_values_and_nan_are_shown_and_never_drawn() -> None:
    html = render("T", [Section("A", [Table("t", ["a", "b"], [["x", None], ["y", float("nan")]])])])
    assert "–" in html
    assert "NaN" in html
    rows: list[dict[str, float | None]] = [
        {"x": 1.0, "y": float("nan")},
        {"x": 2.0, "y": 0.5},
        {"x": 3.0, "y": None},
    ]
    assert charts.lines(rows, "x", "y")["datasets"]["rows"] == [{"x": 2.0, "y": 0.5}]


def test_a_series_of_one_row_is_a_point() -> None:
    alone = [{"x": 10, "y": 0.5}]
    assert charts.lines(alone, "x", "y")["mark"]["point"] is True
    two = [{"x": x, "y": 0.5, "name": name} for name, x in (("a", 1), ("a", 2), ("b", 2))]
    assert charts.lines(two, "x", "y", "name")["mark"]["point"] is True
    assert charts.lines(two[:2], "x", "y", "name")["mark"]["point"] is False


@pytest.mark.parametrize("options", [{}, {"points": True}, {"size": "n"}])
def test_lines_of_several_series_differ_without_color(options: dict[str, Any]) -> None:
    rows = [{"x": x, "y": x * i, "of": f"s{i}", "n": 1} for i in range(7) for x in (1, 2)]
    chart = charts.lines(rows, "x", "y", "of", **options)
    shared = chart["encoding"]["color"]
    second = chart["encoding"]["shape" if "points" in options else "strokeDash"]
    kinds = second["scale"].pop("range")
    assert second == shared  # so both have one legend
    symbol = second["legend"].get("symbolType")
    assert symbol == (None if "points" in options else "stroke")  # circles would show no dashes
    colors = chart["config"]["range"]["category"]
    pairs = {(colors[i % len(colors)], str(kinds[i % len(kinds)])) for i in range(35)}
    assert len(pairs) == 35
    assert "strokeDash" not in charts.lines(rows, "x", "y")["encoding"]


def test_a_page_is_markdown_too() -> None:
    table = Table(
        "Scores", ["model", "f1"], [["a|b", Cell("0.91", note="0.8 to 0.9")], ["*", None]]
    )
    figure = Figure("F1", charts.dots([{"f1": 0.5, "name": "a"}], "f1", "name"))
    sections = [
        Section("Results", [Facts([("Rows", 1200)]), table, Text("Of <task>.", "note")]),
        Section("Charts", [figure]),
    ]
    assert markdown("T", sections).splitlines() == [
        "# T", "", "## Results", "", "- Rows: **1,200**", "",
        "| model | f1 |", "| --- | --- |", r"| a\|b | 0.91 (0.8 to 0.9) |", r"| \* | – |", "",
        r"Of \<task>.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.1235"), (12345.6, "12,346"), (3, "3"), (2e-5, "2e-05"), (None, "–"),
     (1234567, "1,234,567"), (99.5, "99.50"), (0, "0"), (1, "1"), (1.0, "1.0000"), (0.0, "0.0000"),
     (-1.0, "-1.0000"), (2.0, "2")],
)  # fmt: skip
def test_numbers_are_formatted(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0.001, 2, "0.001"),
        (0.085, 2, "0.085"),
        (0.25, 2, "0.25"),
        (0.00583, 3, "0.00583"),
        (340.0, 3, "340"),
    ],
)
def test_few_digits_leave_no_number_at_zero(value: float, digits: int, shown: str) -> None:
    assert number(value, digits) == shown


@pytest.mark.parametrize("items", range(2, 20))
def test_no_fact_stands_alone_in_its_row(items: int) -> None:
    html = render("T", [Section("A", [Facts([(str(n), n) for n in range(items)], wide=True)])])
    columns = {name: int(n) for name, n in re.findall(r"--(\w+):(\d+);", html)}
    assert list(columns) == ["columns", "medium"]
    assert 2 <= columns["medium"] <= 5
    assert columns["medium"] <= columns["columns"] <= 6
    assert all(items % count != 1 for count in columns.values())


def palettes() -> dict[str, dict[str, str]]:
    light, dark, *_ = re.findall(r":root \{(.*?)\}", static_text("page.css"), re.S)
    return {
        scheme: dict(re.findall(r"--([\w]+): (#\w+)", text))
        for scheme, text in (("light", light), ("dark", dark))
    }


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_have_the_contrast_that_wcag_asks_for(scheme: str) -> None:
    colors = palettes()[scheme]
    states = ("running", "finished", "stopped", "failed", "diverged", "pruned")
    for ground in ("paper", "sheet"):
        for name, least in [
            *((name, 4.5) for name in ("ink", "muted", "accent")),
            *((name, 3.0) for name in (*states, *(f"c{i}" for i in range(1, 8)))),
        ]:
            pair = sorted((luminance(colors[name]), luminance(colors[ground])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (scheme, name, ground)
