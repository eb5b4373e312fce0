"""One HTML page from a title and sections: the shell of every report, and of the dashboard.

    from trainyard.report import charts
    from trainyard.report.page import Cell, Facts, Figure, Section, Table, render

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
                Figure("F1 by model", chart=charts.dots(rows, x="f1", y="model")),
            ]),
        ],
        subtitle="run mrpc-1a2b, commit 3a5e3e0",
    )
    Path("report.html").write_text(html, encoding="utf-8")

The file is whole in itself: it loads nothing, from disk or network, and its Content-Security-Policy
forbids it to. Whatever is put in is text and is escaped, so names and data from anywhere are safe;
`Cell(href=…)` takes relative links and https only. It follows the reader's light or dark scheme,
fits a phone, prints, and every control works by keyboard. A file without figures is about 25 kB,
one with figures about 1 MB: Vega, which draws them, is put in once.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trainyard.report.assets import STATIC, static_text, vega_bundle

Value = str | int | float | bool | None
Status = Literal[
    "waiting", "running", "finished", "stopped", "pruned", "diverged", "failed", "unknown"
]
"""What a run or sweep is doing or how it ended; each has a colour and a shape of its own."""

_TEMPLATES = Path(__file__).parent / "templates"
_SAFE_LINK = re.compile(r"(?:https://|/(?!/)|\./|\?|#)")


@dataclass(frozen=True)
class Cell:
    """A cell of a table or a value among facts, when plain text or a plain number will not do.

    `sort` is what it is sorted by (default: the text; None and NaN always come last), `note` small
    print after it (an interval, a unit), `href` a link, `status` puts the mark of a run's state
    before it, `share` (0 to 1) draws a bar behind it.

    Raises:
        ValueError: for a link that is neither https nor inside the page's own site.
    """

    text: str
    sort: float | str | None = None
    note: str = ""
    href: str | None = None
    status: Status | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.href is not None and not _SAFE_LINK.match(self.href):
            raise ValueError(f"link {self.href!r} must start with https://, /, ./, ? or #")


@dataclass(frozen=True)
class Table:
    """Rows under named columns, sortable by each; from 12 rows on it can be filtered by words.

    The first column names the row. A column whose cells sort by numbers is aligned right.
    `order` is the column that the rows are already sorted by, with a leading "-" for descending.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | Value]]
    empty: str = "Nothing here yet."
    order: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart: a Vega-Lite specification, as a function of `charts` gives it.

    `description` says in words what is seen, for those who do not see it. A chart that is narrower
    than `min_width` pixels could not be read: on a small screen it is panned instead.
    """

    caption: str
    chart: Mapping[str, Any]
    description: str = ""
    min_width: int = 0


@dataclass(frozen=True)
class Facts:
    """Names and values, as a list; with `wide`, as large figures beside each other."""

    items: Sequence[tuple[str, Cell | Value]]
    wide: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` "note" is quiet, "warning" and "error" stand out, "code" keeps lines."""

    text: str
    kind: Literal["plain", "note", "warning", "error", "code"] = "plain"


@dataclass(frozen=True)
class Section:
    """A headed part of the page; `folded` ones are opened by a click or a key.

    In a `grid`, small figures stand beside each other where there is room.
    """

    title: str
    content: Sequence[Table | Figure | Facts | Text]
    folded: bool = False
    grid: bool = False


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
    """The page as HTML. By default one self-contained file.

    `crumbs` are (text, link) of the pages above this one. `site`, for a server, is the address
    prefix under which it serves `STATIC` and `vega.js`, so that browsers keep them; with
    `refresh_seconds` such a page asks for its news by itself.
    """
    draws = any(isinstance(part, Figure) for section in sections for part in section.content)
    scripts = [static_text("page.js")]
    if site is None and draws:
        scripts.insert(0, vega_bundle())
    html: str = _template().render(
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
    return html


def policy(scripts: Sequence[str] = ()) -> str:
    """Content-Security-Policy: these inline scripts, else only what the page's own server has."""
    sources = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ] or ["'self'"]
    connect = "" if scripts else "connect-src 'self'; "
    return (
        f"default-src 'none'; script-src {' '.join(sources)}; style-src 'unsafe-inline' 'self'; "
        f"img-src data:; {connect}base-uri 'none'; form-action 'none'"
    )


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: thousands apart, `digits` significant ones; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value).replace("nan", "NaN").replace("inf", "∞")
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    if 1e-3 <= abs(value) < 1e6:
        whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
        return f"{value:,.{max(digits - whole, 1 if whole < digits else 0)}f}".replace(
            ",", "\u202f"
        )
    return f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    """A span of time for people: 0.8 s, 12 s, 3 min 04 s, 2 h 05 min; a dash for None."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _section(section: Section, index: int) -> dict[str, Any]:
    slug = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
    return {
        "title": section.title,
        "id": f"{slug or 'section'}-{index + 1}",
        "folded": section.folded,
        "grid": section.grid,
        "content": [_part(part) for part in section.content],
    }


def _part(part: Table | Figure | Facts | Text) -> dict[str, Any]:
    match part:
        case Table():
            rows = [[_cell(cell) for cell in row] for row in part.rows]
            numeric = [
                bool(seen := [row[i].sort for row in rows if row[i].sort == row[i].sort])
                and all(isinstance(key, int | float) for key in seen)
                for i in range(len(part.columns))
            ]
            order = {
                part.order.removeprefix("-"): "descending" if part.order[:1] == "-" else "ascending"
            }
            columns = [
                {"name": name, "numeric": numeric[i], "order": order.get(name, "none")}
                for i, name in enumerate(part.columns)
            ]
            return {"kind": "table", "part": part, "columns": columns, "rows": rows}
        case Figure():
            return {"kind": "figure", "part": part, "spec": _embedded_json(part.chart)}
        case Facts():
            return {"kind": "facts", "part": part, "items": [(k, _cell(v)) for k, v in part.items]}
        case Text():
            return {"kind": "text", "part": part}


def _cell(value: Cell | Value) -> Cell:
    match value:
        case Cell():
            return value if value.sort is not None else Cell(**{**vars(value), "sort": value.text})
        case None:
            return Cell("–", sort=math.nan)
        case bool():
            return Cell("yes" if value else "no", sort=str(value))
        case int() | float():
            return Cell(number(value), sort=value)
        case _:
            return Cell(value, sort=value)


def _embedded_json(value: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element: nothing in it can end that element."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """NaN and infinities as null, which Vega leaves out; JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


__all__ = [
    "STATIC", "Cell", "Facts", "Figure", "Section", "Table", "Text",
    "duration", "number", "policy", "render",
]  # fmt: skip
