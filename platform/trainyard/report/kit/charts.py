"""Charts for `page.Figure`: rows of plain values in, a Vega-Lite specification out.

Colors are the page's CSS variables, so a chart follows light, dark and print by itself; shapes or
direct labels tell series apart as well, for those who do not see the colors. Values that are None
or NaN are left out of a chart, never drawn as zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

SERIES = tuple(f"var(--c{i})" for i in range(1, 8))
LEVELS = tuple(f"var(--q{i})" for i in range(1, 6))
"""From worst to best; steps and not a gradient, for CSS variables cannot be interpolated."""
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right")
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif'

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched
CONFIG: Mapping[str, Any] = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None},
    "range": {"category": list(SERIES), "symbol": list(SHAPES)},
    "axis": {
        "labelColor": "var(--muted)", "titleColor": "var(--muted)", "gridColor": "var(--line)",
        "domainColor": "var(--line)", "tickColor": "var(--line)", "labelFontSize": 12,
        "titleFontSize": 12, "titleFontWeight": 400, "titlePadding": 8, "labelLimit": 260,
        "labelOverlap": "greedy",
    },
    "axisXQuantitative": {
        "tickCount": 8, "grid": False, "domainColor": "var(--muted)", "labelOverlap": "parity",
        "labelSeparation": 10,
    },
    "legend": {
        "labelColor": "var(--ink)", "titleColor": "var(--muted)", "labelFontSize": 12,
        "titleFontSize": 12, "titleFontWeight": 400, "orient": "top", "labelLimit": 320,
        "symbolStrokeWidth": 2,
    },
    "header": {"labelColor": "var(--muted)", "titleColor": "var(--muted)"},
    "text": {"color": "var(--ink)", "fontSize": 12},
    "rule": {"color": "var(--muted)"},
    "point": {"color": "var(--c1)", "filled": True, "size": 60, "opacity": 1},
    "bar": {"color": "var(--c1)"},
    "line": {"color": "var(--c1)", "strokeWidth": 2},
}  # fmt: skip


def specification(chart: Mapping[str, Any], height: int) -> dict[str, Any]:
    """A Vega-Lite chart as the page draws it: as wide as its place, in the page's colors."""
    place = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return {"$schema": SCHEMA, "config": CONFIG, "height": height, **place, **chart}


def values(rows: Rows) -> dict[str, Any]:
    """Rows as the data of a chart."""
    return {"values": [dict(row) for row in rows]}


def lines(
    rows: Rows,
    x: str,
    y: str,
    series: str | None = None,
    *,
    points: bool = False,
    y_format: str = "",
    height: int = 260,
) -> dict[str, Any]:
    """`y` along `x`, a line for each value of `series`; columns are named as axes are titled."""
    axis = {"axis": {"format": y_format}} if y_format else {}
    chart: dict[str, Any] = {
        "data": values(_drawn(rows, y)),
        "mark": {"type": "line", "point": points},
        "encoding": {
            "x": quantity(x),
            "y": {**quantity(y), **axis, "scale": {"zero": False}},
            "tooltip": _tooltip(rows, series, x, y),
            **({} if series is None else {"color": category(series, title=None, sort=None)}),
        },
    }
    return specification(chart, height)


def dots(
    rows: Rows,
    value: str,
    name: str,
    *,
    low: str | None = None,
    high: str | None = None,
    series: str | None = None,
) -> dict[str, Any]:
    """One row for each `name`, a dot at `value`, a bar from `low` to `high` (an interval)."""
    encoding: dict[str, Any] = {"y": category(name, title=None, sort=None)}
    if series is not None:
        encoding["yOffset"] = category(series)
        encoding["color"] = category(series)
    scale = {"zero": False, "nice": True}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "point"},
            "encoding": {
                "x": {**quantity(value), "scale": scale},
                "tooltip": _tooltip(rows, name, series, value, low, high),
            },
        }
    ]
    if low is not None and high is not None:
        ends = {"x": {**quantity(low, title=value), "scale": scale}, "x2": {"field": _field(high)}}
        rule = {"type": "rule", "strokeWidth": 2, "color": "var(--c7)"}
        layers.insert(0, {"mark": rule, "encoding": ends})
    chart = {"data": values(_drawn(rows, value)), "encoding": encoding, "layer": layers}
    return specification(chart, 22 * _places(rows, name, series))


def bars(
    rows: Rows, value: str, name: str, *, series: str | None = None, stack: bool = False
) -> dict[str, Any]:
    """A bar from zero to `value` for each `name`; `series` beside each other, or stacked."""
    encoding: dict[str, Any] = {
        "x": quantity(value),
        "y": category(name, title=None, sort=None),
        "tooltip": _tooltip(rows, name, series, value),
    }
    if series is not None:
        encoding["color"] = category(series, sort=None)
        if not stack:
            encoding["yOffset"] = category(series, sort=None)
    chart = {"data": values(_drawn(rows, value)), "mark": {"type": "bar"}, "encoding": encoding}
    return specification(chart, 24 * _places(rows, name, None if stack else series))


def histogram(
    rows: Rows, value: str, *, series: str | None = None, bins: int = 40
) -> dict[str, Any]:
    """How often values of `value` occur."""
    chart = {
        "data": values(_drawn(rows, value)),
        "mark": {"type": "bar"},
        "encoding": {
            "x": {**quantity(value), "bin": {"maxbins": bins}, "axis": {"tickCount": 8}},
            "y": {"aggregate": "count", "type": "quantitative", "title": "rows"},
            **({} if series is None else {"color": category(series)}),
        },
    }
    return specification(chart, 220)


def matrix(rows: Rows, x: str, y: str, value: str) -> dict[str, Any]:
    """A table of `value` by `x` and `y`, darker where it is larger: confusion, overlap."""
    opacity = {**quantity(value), "legend": None, "scale": {"range": [0.04, 0.5]}}
    chart = {
        "data": values(_drawn(rows, value)),
        "encoding": {
            "x": {**category(x, sort=None), "axis": {"labelAngle": 0}},
            "y": category(y, sort=None),
        },
        "layer": [
            {
                "mark": {"type": "rect", "color": "var(--accent)", "stroke": "var(--sheet)"},
                "encoding": {"opacity": opacity, "tooltip": _tooltip(rows, y, x, value)},
            },
            {"mark": {"type": "text"}, "encoding": {"text": quantity(value)}},
        ],
    }
    return specification(chart, 40 * _places(rows, y))


def quantity(column: str, title: str | None = None) -> dict[str, Any]:
    """A column of numbers as a channel."""
    return {"field": _field(column), "type": "quantitative", "title": title or column}


_SAME = object()


def category(column: str, title: Any = _SAME, **options: Any) -> dict[str, Any]:
    """A column of names as a channel."""
    title = column if title is _SAME else title
    return {"field": _field(column), "type": "nominal", "title": title, **options}


def _field(name: str) -> str:
    """A column's name as a Vega-Lite field: dots and brackets would be read as paths."""
    for mark in ("\\", ".", "[", "]"):
        name = name.replace(mark, f"\\{mark}")
    return name


def _places(rows: Rows, name: str, series: str | None = None) -> int:
    """How many rows a chart needs that has one for each name, or each name and series."""
    drawn = {str(row.get(name)) for row in rows}
    return max(len(drawn) * len({str(row.get(series)) for row in rows} if series else "1"), 1)


def _drawn(rows: Rows, value: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get(value) is not None and row[value] == row[value]]


def _tooltip(rows: Rows, *columns: str | None) -> list[dict[str, Any]]:
    def channel(column: str) -> dict[str, Any]:
        seen = [row[column] for row in rows if row.get(column) is not None]
        if seen and all(isinstance(value, int | float) for value in seen):
            return {**quantity(column), "format": ".4~g"}
        return category(column)

    return [channel(column) for column in columns if column is not None]
