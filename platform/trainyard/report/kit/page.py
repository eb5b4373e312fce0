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

from trainyard.report.kit.assets import STATIC, static_text, vega_bundle
from trainyard.report.kit.cells import (
    Cell,
    Status,
    Value,
    as_cell,
    cell_html,
    commit,
    duration,
    number,
    per_cent,
    row_html,
    text_cell,
)

_TEMPLATES = Path(__file__).parent / "templates"


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
    return html.encode("utf-8", "replace").decode()  # JSON can hold half a character, a page cannot


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
            rows = [[as_cell(cell) for cell in row] for row in part.rows]
            numeric = [
                bool(seen := [row[i].sort for row in rows if row[i].sort == row[i].sort])
                and all(isinstance(key, int | float) for key in seen)
                for i in range(len(part.columns))
            ]
            order = {
                part.order.removeprefix("-"): "descending" if part.order[:1] == "-" else "ascending"
            }
            columns = [
                {
                    "name": name,
                    "numeric": numeric[i],
                    "order": order.get(name, "none"),
                    "width": 0
                    if numeric[i]
                    else _width([row[i].text for row in rows], first=not i),
                }
                for i, name in enumerate(part.columns)
            ]
            body = "\n".join(row_html(row, numeric) for row in rows)
            return {"kind": "table", "part": part, "columns": columns, "body": body}
        case Figure():
            return {"kind": "figure", "part": part, "spec": _embedded_json(part.chart)}
        case Facts():
            return {
                "kind": "facts",
                "part": part,
                "items": [(k, cell_html(as_cell(v))) for k, v in part.items],
            }
        case Text():
            return {"kind": "text", "part": part}


def _width(texts: Sequence[str], *, first: bool) -> int:
    """Characters that a column of words is wide at least: short ones are not broken, long ones are."""
    longest = max(map(len, texts), default=0)
    return min(longest, 14 if first else 22) + 2


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
    "STATIC", "Cell", "Facts", "Figure", "Section", "Status", "Table", "Text", "Value", "commit",
    "duration", "number", "per_cent", "policy", "render", "text_cell",
]  # fmt: skip
