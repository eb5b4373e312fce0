"""What stands in a cell: text, a number for people, a link, the mark of a state; and its HTML."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal

Value = str | int | float | bool | None
Status = Literal[
    "waiting", "running", "finished", "stopped", "pruned", "diverged", "failed", "unknown"
]
"""What a run or sweep is doing or how it ended; each has a color and a shape of its own."""

LONGEST_TEXT = 1000
"""Characters of a text that a page shows: rows may be whole documents, and tables hold hundreds."""

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


def per_cent(share: float | None, digits: int = 0) -> str:
    """A share as 12.5 %; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}\u202f%"


def text_cell(row: Mapping[str, Any]) -> Cell:
    """The text of a data row, the second of a pair after it; the end of a long one is cut off («…»)."""
    return Cell(_clipped(row["text"]), note=_clipped(row.get("text_pair") or ""))


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def commit(versions: Mapping[str, str | None]) -> str:
    """The code that made a report, from its `versions`."""
    found = versions.get("commit")
    return f"commit {found[:10]}{'+' * found.endswith('+')}" if found else "no commit known"


def as_cell(value: Cell | Value) -> Cell:
    """A plain value as a cell that can be sorted by."""
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


def cell_html(cell: Cell) -> str:
    """The inside of a cell; not by the template, for a page has thousands and this is faster."""
    mark = f'<span class="status {escape(cell.status)}"></span>' if cell.status else ""
    text = escape(cell.text)
    if cell.href:
        text = f'<a href="{escape(cell.href)}">{text}</a>'
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    return mark + text + note


def row_html(cells: list[Cell], numeric: list[bool]) -> str:
    """A row of a table; its first cell is its name."""
    parts = []
    for i, (cell, right) in enumerate(zip(cells, numeric, strict=True)):
        tag, scope = ("td", "") if i else ("th", ' scope="row"')
        kind = ' class="number"' if right else ""
        key = "" if cell.sort == cell.text else f' data-sort="{escape(str(cell.sort))}"'
        bar = ""
        if cell.share is not None:
            bar = f'<meter min="0" max="1" value="{cell.share:.4f}" aria-hidden="true"></meter>'
        parts.append(f"<{tag}{scope}{kind}{key}>{cell_html(cell)}{bar}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"
