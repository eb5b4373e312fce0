"""One HTML page from a title and sections: the shell of every report and of the dashboard.

    from trainyard.report import kit
    from trainyard.report.kit import Cell, Facts, Figure, Section, Table, render

    html = render(
        "MRPC, three models",
        [
            Section("Results", [
                Facts([("Rows", 408), ("Seed", 42)]),
                Table(
                    "Scores on validation",
                    ["Model", "F1"],
                    [["MiniLM", Cell("0.912", sort=0.912, note="0.890 to 0.931")], ["BERT", None]],
                ),
                Figure("F1 by model", chart=kit.charts.dots(rows, value="f1", name="model")),
            ]),
        ],
        subtitle="run mrpc-1a2b, commit 3a5e3e0",
    )
    Path("report.html").write_text(html, encoding="utf-8")

The file is self-contained: it loads nothing from disk or network, and its Content-Security-Policy
forbids loading. All input is text and is escaped, so names and data from anywhere are safe.
`Cell(href=…)` takes links inside the site, to this machine, and https only. The page follows the
reader's light or dark scheme, fits a phone, prints, and every control works by keyboard. A file
without figures is about 30 kB. A file with figures is about 1 MB, because it contains Vega, which
draws them.
"""

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import jinja2

Value = str | int | float | bool | None
Status = Literal[
    "waiting", "running", "finished", "stopped", "pruned", "diverged", "failed", "unknown"
]
"""State of a run or sweep; each state has a color and a shape."""

STATIC = Path(__file__).parent / "static"
MAX_TEXT = 1000
"""Maximum characters of a text on a page: a data row may be a whole document."""

WIDE_COLUMNS = {"columns": 6, "medium": 4}
"""CSS variable -> about the maximum columns of wide facts, on a wide and on a medium page."""

_SAFE_LINK = re.compile(r"(?:https://|http://127\.0\.0\.1(?::\d+)?/|/(?!/)|\./|\?|#)")


@dataclass(frozen=True)
class Cell:
    """Table cell or value of a fact, when plain text or a plain number is not enough.

    Attributes:
        text: Text of the cell.
        sort: Sort key. Default: the text. NaN comes last in either order.
        note: Small print after the text, such as an interval.
        href: Link of the text.
        status: State of a run, whose mark stands before the text.
        share: Fraction from 0 to 1, drawn as a bar below the text.

    Raises:
        ValueError: The link is neither https, nor on this machine, nor inside the page's own site.
    """

    text: str
    sort: float | str | None = None
    note: str = ""
    href: str | None = None
    status: Status | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.href is not None and not _SAFE_LINK.match(self.href):
            starts = "https://, http://127.0.0.1/, /, ./, ? or #"
            raise ValueError(f"link {self.href!r} must start with {starts}")


@dataclass(frozen=True)
class Table:
    """Rows under named columns, sortable by each and downloadable as CSV.

    The first column names the row. A column whose cells have numeric sort keys is aligned right. A
    table of 12 rows or more has a text filter.

    Attributes:
        caption: Title of the table.
        columns: Names of the columns.
        rows: One value per column.
        empty: Text in place of a table without rows.
        order: Column by which the rows are sorted already, with a leading "-" for descending order.
        choices: Columns with few values; the reader can choose one to see its rows. Such a table
            always has a text filter.
        select: URL of a page about several rows. Each row gets a check box, and the page gets the
            keys of the chosen rows as `run` parameters.
        keys: Key of each row for `select`. Default: the text of its first cell.
        most: Maximum rows that the reader can choose.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | Value]]
    empty: str = "Nothing here yet."
    order: str = ""
    choices: Sequence[str] = ()
    select: str = ""
    keys: Sequence[str] = ()
    most: int = 7


@dataclass(frozen=True)
class Figure:
    """Chart with its caption.

    Attributes:
        caption: Title of the chart.
        chart: Vega-Lite specification, from a function of `charts`.
        description: Content of the chart in words, for readers who do not see it.
        min_width: Pixels below which the chart is panned on a small screen instead of shrunk.
    """

    caption: str
    chart: Mapping[str, Any]
    description: str = ""
    min_width: int = 0


@dataclass(frozen=True)
class Facts:
    """Names and values, as a list; with `wide`, as large figures next to each other."""

    items: Sequence[tuple[str, Cell | Value]]
    wide: bool = False


@dataclass(frozen=True)
class Text:
    """Paragraph.

    A "headline" answers the page's question. A "note" is quiet; "warning" and "error" stand out.
    "code" keeps its lines, and "command" is code with a button that copies it.
    """

    text: str
    kind: Literal["plain", "headline", "note", "warning", "error", "code", "command"] = "plain"


Part = Table | Figure | Facts | Text


@dataclass(frozen=True)
class Section:
    """Part of a page under a heading.

    Attributes:
        title: Heading.
        content: Parts, from top to bottom.
        folded: True to hide the content until the reader opens it.
        grid: True to place small figures next to each other if the page is wide enough.
    """

    title: str
    content: Sequence[Part]
    folded: bool = False
    grid: bool = False


def number(value: float | None, digits: int = 4) -> str:
    """Format a number for a page, with thousands separators.

    Whole numbers below 1e15, and the integer parts of fractions below 1e6, keep all digits.
    Decimals fill a fraction up to `digits` digits; one below 1 gets `digits` decimals, and so do
    the floats 0, 1 and -1, which are scores or shares. Other numbers, also very small ones, have
    Python's format `g`. None becomes a dash, and infinity ∞.
    """
    if value is None:
        return "–"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value).replace("nan", "NaN").replace("inf", "∞")
    if isinstance(value, float) and value in (-1, 0, 1):
        return f"{value:.{digits}f}"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if max(1e-3, 10 ** (1 - digits)) <= abs(value) < 1e6:
        whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
        return f"{value:,.{max(digits - whole, 1 if whole < digits else 0)}f}"
    return f"{value:.{digits}g}"


def percent(share: float | None, digits: int = 0) -> str:
    """Format a fraction as a percentage, 0.125 as 12.5 % with `digits` 1; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}\u00a0%"


def moment_cell(seconds: float | None) -> Cell:
    """Return the cell of a time in `seconds` since 1970: local date and time, a dash for None."""
    if seconds is None:
        return Cell("–", math.nan)
    return Cell(time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)), seconds)


def number_cell(value: float | None, text: str | None = None, note: str = "") -> Cell:
    """Return the cell of a number, shown as `text`. Default: as `number` formats it."""
    shown = number(value) if text is None or value is None else text
    return Cell(shown, math.nan if value is None else value, note)


def status_cell(status: Status, note: str = "", text: str = "") -> Cell:
    """Return the cell of a state, with its mark. Default text: the state."""
    return Cell(text or status.capitalize(), status=status, note=note)


def text_cell(row: Mapping[str, Any]) -> Cell:
    """Return the cell of a data row: its text, and as a note the second text of a pair.

    A text longer than `MAX_TEXT` is cut off at its end.
    """
    return Cell(_clipped(row["text"]), note=_clipped(row.get("text_pair") or ""))


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def commit(versions: Mapping[str, str | None]) -> str:
    """Return the commit that made a report, from its `versions`.

    A final "+" marks uncommitted changes.
    """
    found = versions.get("commit")
    return f"commit {found[:10]}{'+' * found.endswith('+')}" if found else "no commit known"


def render(
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    status: Status | None = None,
    crumbs: Sequence[tuple[str, str]] = (),
    site: str | None = None,
    refresh_seconds: float = 0,
) -> str:
    """Return the page as HTML; by default one self-contained file.

    Args:
        title: Heading of the page.
        sections: Content, from top to bottom.
        subtitle: Line below the heading.
        status: State shown below the heading.
        crumbs: (text, link) of the pages above this page.
        site: URL prefix under which a server has the style and the scripts, so that browsers cache
            them.
        refresh_seconds: Seconds between two updates of a page that has a `site`; 0 for none.
    """
    draws = any(isinstance(part, Figure) for section in sections for part in section.content)
    scripts = [static_text("page.js")]
    if site is None and draws:
        scripts.insert(0, vega_bundle())
    html = _template().render(
        title=title,
        subtitle=subtitle,
        status=status,
        crumbs=crumbs,
        sections=[_section(section, i) for i, section in enumerate(sections)],
        site=site,
        draws=draws,
        refresh=refresh_seconds,
        css=static_text("page.css"),
        scripts=scripts if site is None else [],
        policy=policy(scripts) if site is None else None,
    )
    return html.encode("utf-8", "replace").decode()  # JSON can hold unpaired surrogates


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the tables, facts and texts of a page as Markdown; figures are left out."""
    blocks = [f"# {_literal(title)}"]
    for section in sections:
        found = [_markdown_part(part) for part in section.content if not isinstance(part, Figure)]
        blocks += [f"## {_literal(section.title)}", *found] if found else []
    return "\n\n".join(blocks) + "\n"


def _markdown_part(part: "Table | Facts | Text") -> str:
    def text(value: Cell | Value) -> str:
        cell = _as_cell(value)
        return _literal(f"{cell.text} ({cell.note})" if cell.note else cell.text)

    match part:
        case Text():
            return _literal(part.text)
        case Facts():
            return "\n".join(f"- {text(name)}: **{text(value)}**" for name, value in part.items)
        case Table():
            rows = [part.columns, ["---"] * len(part.columns), *part.rows]
            return "\n".join(f"| {' | '.join(map(text, row))} |" for row in rows)


def _literal(text: str) -> str:
    """Escape what Markdown would read as markup: a path may hold <task>."""
    return re.sub(r"([*<|])", r"\\\1", text)


def policy(scripts: Sequence[str] = ()) -> str:
    """Return a Content-Security-Policy that allows these inline scripts only.

    Without `scripts` it allows the files of the page's server.
    """
    sources = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ] or ["'self'"]
    connect = "" if scripts else "connect-src 'self'; "
    return (
        f"default-src 'none'; script-src {' '.join(sources)}; style-src 'unsafe-inline' 'self'; "
        f"img-src data:; {connect}base-uri 'none'; form-action 'none'"
    )


@cache
def static_text(name: str) -> str:
    """Return the text of a file in `static/`."""
    return (STATIC / name).read_text(encoding="utf-8")


@cache
def vega_bundle() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script of 0.9 MB.

    The first call takes about two seconds.
    """
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub lacks a default
    return script.replace("</script", "<\\/script")


@cache
def _template() -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(STATIC),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _section(section: Section, index: int) -> dict[str, Any]:
    slug = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
    return {
        "title": section.title,
        "id": slug or f"section-{index + 1}",
        "folded": section.folded,
        "grid": section.grid,
        "content": [_part(part) for part in section.content],
    }


def _part(part: Part) -> dict[str, Any]:
    match part:
        case Table():
            return {"kind": "table", "part": part, **_table(part)}
        case Figure():
            # A chart of fixed width also needs space for the labels at its left.
            fixed = part.chart.get("width")
            width = part.min_width or (fixed + 120 if isinstance(fixed, int) else 0)
            spec = _embedded_json(part.chart)
            return {"kind": "figure", "part": part, "spec": spec, "width": width}
        case Facts():
            items = [(name, _cell_html(_as_cell(value))) for name, value in part.items]
            widths = {name: _columns(len(items), most) for name, most in WIDE_COLUMNS.items()}
            return {"kind": "facts", "part": part, "items": items, "columns": widths}
        case Text():
            return {"kind": "text", "part": part}


def _columns(items: int, most: int) -> int:
    """Return about `most` columns or fewer, for which the last row of facts is about full.

    No fact stands alone in the last row, if a number of columns up to `most + 1` allows it.
    """
    even = -(-items // max(-(-items // most), 1)) or 1
    return next((n for n in (even, *range(most + 1, 1, -1)) if items % n != 1), even)


def _table(table: Table) -> dict[str, Any]:
    rows = [[_as_cell(cell) for cell in row] for row in table.rows]
    numeric = []
    for i in range(len(table.columns)):
        keys = [row[i].sort for row in rows if row[i].sort == row[i].sort]
        numeric.append(bool(keys) and all(isinstance(key, int | float) for key in keys))
    order = {table.order.removeprefix("-"): "descending" if table.order[:1] == "-" else "ascending"}
    columns = [
        {
            "name": name,
            "numeric": numeric[i],
            "order": order.get(name, "none"),
            "choice": name in table.choices,
            "width": 0 if numeric[i] else _width([row[i].text for row in rows], first=not i),
            "phone": 0 if numeric[i] else _phone_width([row[i].text for row in rows], first=not i),
        }
        for i, name in enumerate(table.columns)
    ]
    runs = [""] * len(rows)
    if table.select:
        runs = list(table.keys) or [row[0].text for row in rows]
    body = [_row_html(row, numeric, run) for row, run in zip(rows, runs, strict=True)]
    return {"columns": columns, "body": "\n".join(body)}


def _as_cell(value: Cell | Value) -> Cell:
    match value:
        case Cell():
            return value if value.sort is not None else replace(value, sort=value.text)
        case None:
            return Cell("–", sort=math.nan)
        case bool():
            return Cell("yes" if value else "no", sort=str(value))
        case int() | float():
            return Cell(number(value), sort=value)
        case _:
            return Cell(value, sort=value)


def _cell_html(cell: Cell) -> str:
    """Return the HTML inside a cell. A template would be slower: a page has thousands of cells."""
    mark = f'<span class="status {escape(cell.status)}"></span>' if cell.status else ""
    text = escape(cell.text)
    if cell.href:
        lines = text.replace("/", "/<wbr>")  # browsers do not break a path
        text = f'<a href="{escape(cell.href)}">{lines}</a>'
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    return mark + text + note


def _row_html(cells: Sequence[Cell], numeric: Sequence[bool], run: str) -> str:
    parts = []
    for i, (cell, right) in enumerate(zip(cells, numeric, strict=True)):
        tag, scope = ("td", "") if i else ("th", ' scope="row"')
        kind = ' class="number"' if right else ""
        key = "" if cell.sort == cell.text else f' data-sort="{escape(str(cell.sort))}"'
        bar = ""
        if cell.share is not None:
            bar = f'<meter min="0" max="1" value="{cell.share:.4f}" aria-hidden="true"></meter>'
        parts.append(f"<{tag}{scope}{kind}{key}>{_cell_html(cell)}{bar}</{tag}>")
    chosen = f' data-run="{escape(run)}"' if run else ""
    return f"<tr{chosen}>{''.join(parts)}</tr>"


def _width(texts: Sequence[str], *, first: bool) -> int:
    """Return the minimum width of a column, in characters, at which short words are not broken."""
    longest = max(map(len, texts), default=0)
    return min(longest, 14 if first else 22) + 2


def _phone_width(texts: Sequence[str], *, first: bool) -> int:
    """Return the minimum width of a column on a phone, in characters.

    Names of rows stay in view, so they get the width of their longest word.
    """
    parts = [part for text in texts for part in re.split(r"\s+|(?<=[-/])", text)]
    return min(max(map(len, parts if first else texts), default=0), 16) + 1


def _embedded_json(value: Mapping[str, Any]) -> str:
    """Return JSON for a script element; no value can end the element."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, with null, which Vega leaves out."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
