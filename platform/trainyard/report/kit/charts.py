"""Charts for `page.Figure`: functions that turn rows of plain values into Vega-Lite specifications.

Colors are the page's CSS variables, so a chart follows light, dark and print. Values that are None
or NaN are left out of a chart, never drawn as zero.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

Rows = Sequence[Mapping[str, Any]]
"""Data of a chart: one mapping per data point, from column names to values."""
Specification = dict[str, Any]
Chart = alt.Chart | alt.LayerChart | alt.FacetChart

SERIES = tuple(f"var(--c{i})" for i in range(1, 8))
"""Colors of up to seven series."""
LEVELS = tuple(f"var(--q{i})" for i in range(1, 6))
"""Colors from worst to best. They are steps, because CSS variables cannot be interpolated."""
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")
"""Shapes of points. Seven colors and six shapes keep 42 series apart."""
DASHES = ((1, 0), (8, 3), (2, 2), (8, 3, 2, 3), (4, 2))
"""Dashes and gaps in pixels. Seven colors and five kinds of lines keep 35 series apart."""
FEWEST_SMOOTHED = 20
"""Minimum rows of a curve for which the page offers a moving average."""
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif'
_SMALL = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 400}

CONFIG: Mapping[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "range": {"category": list(SERIES)},
    "axis": {
        **_SMALL, "labelColor": "var(--muted)", "titleColor": "var(--muted)",
        "gridColor": "var(--line)", "domainColor": "var(--line)", "tickColor": "var(--line)",
        "titlePadding": 8, "labelOverlap": "greedy",
        "labelLimit": {"expr": "clamp(0.6 * containerSize()[0], 130, 320)"},
    },
    "axisXQuantitative": {
        "tickCount": 8, "grid": False, "domainColor": "var(--muted)", "labelOverlap": "parity",
        "labelSeparation": 10,
    },
    "legend": {
        **_SMALL, "labelColor": "var(--ink)", "titleColor": "var(--muted)", "orient": "top",
        "labelLimit": {"expr": "max(containerSize()[0] - 80, 120)"}, "symbolStrokeWidth": 2,
    },
    "header": {"labelColor": "var(--muted)", "titleColor": "var(--muted)"},
    "text": {"color": "var(--ink)", "fontSize": 12},
    "rule": {"color": "var(--muted)"},
    "point": {"color": "var(--c1)", "filled": True, "size": 60, "opacity": 1},
    "bar": {"color": "var(--c1)"},
    "line": {"color": "var(--c1)", "strokeWidth": 2},
}  # fmt: skip
"""Vega-Lite configuration of every chart."""


def specification(
    chart: Chart,
    height: int,
    *,
    log: bool = False,
    zoom: bool = False,
    smooth: Mapping[str, str | None] | None = None,
    **rows: Rows,
) -> Specification:
    """Return the specification of a chart that fills its column of the page, in the page's colors.

    Args:
        chart: Chart whose data are named.
        height: Pixels.
        log: True to let the reader switch the y axis to a logarithmic scale.
        zoom: True to let the reader zoom and pan.
        smooth: Columns `y` and `series` of a curve that the reader may replace with its moving
            average.
        rows: Data of the chart, by name.
    """
    size = alt.AutoSizeParams(type="fit-x", contains="padding")
    if zoom:
        # A plain wheel must scroll the page. Browsers report a pinch as Ctrl and wheel.
        chart = chart.add_params(
            alt.selection_interval(name="zoom", bind="scales", zoom="wheel![event.ctrlKey]")
        )
    chart = chart.properties(width="container", height=height, autosize=size).configure(**CONFIG)
    found: Specification = chart.to_dict()
    return {**found, "datasets": rows, "usermeta": {"log": log, "zoom": zoom, "smooth": smooth}}


def lines(
    rows: Rows,
    x: str,
    y: str,
    series: str | None = None,
    *,
    domain: Sequence[str] = (),
    points: bool = False,
    size: str | None = None,
    y_format: str = "",
    height: int = 260,
) -> Specification:
    """Draw `y` along `x`, with a line for each value of `series`; column names title the axes.

    Series also differ by dashes, or with `points` by shape: color is not needed to read the chart. Rows
    are marked, too, if a series has only one, which is no line.

    Args:
        rows: Data of the chart.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
        series: Column whose values separate the lines, or None for one line.
        domain: All values of `series` in a group of charts, which draw a value alike. Default: those
            of `rows`.
        points: True to mark each row on the line.
        size: Column of counts; each row becomes a point whose area grows with its count.
        y_format: D3 number format of the vertical axis.
        height: Pixels.
    """
    rows = _drawn(rows, y)
    points = points or 1 in Counter(row.get(series or "") for row in rows).values()
    axis = alt.Axis(format=y_format) if y_format else alt.Undefined
    base = alt.Chart(alt.NamedData("rows"))
    chart: Chart = base.mark_line(point=points, clip=size is None)
    if size is not None:
        area = alt.Scale(range=[20, 500])
        circles = base.mark_point(opacity=0.7).encode(
            alt.Size(**quantity(size), scale=area, legend=None)
        )
        chart = alt.layer(base.mark_line(), circles)
    across = scale(_column(rows, x), nice=False, padding=6 if points else 0)
    chart = chart.encode(
        alt.X(**quantity(x), scale=across),
        alt.Y(
            **quantity(y), axis=axis, scale=_upward(_column(rows, y), padding=6 if points else 0)
        ),
        tooltip=_tooltip(rows, series, x, y, size),
    )
    if series is not None:
        # Only channels with equal domains share a legend, and points are a layer of their line.
        found = list(dict.fromkeys(_column(rows, series)))
        every = list(domain) or found
        kinds: list[Any] = list(SHAPES) if points else [list(dash) for dash in DASHES]
        channel = alt.Shape if points else alt.StrokeDash
        symbol = None if points else "stroke"  # circles of a layer would get the dashes
        shared = _series(rows, series, symbol, [name for name in every if name in found])
        chart = chart.encode(
            alt.Color(**shared, scale=alt.Scale(domain=every)),
            channel(**shared, scale=alt.Scale(domain=every, range=kinds)),
        )
    curve = size is None
    log = curve and all(value > 0 for value in _column(rows, y))
    smooth = {"y": y, "series": series} if curve and len(rows) >= FEWEST_SMOOTHED else None
    return specification(chart, height, log=log, zoom=curve, smooth=smooth, rows=rows)


def dots(
    rows: Rows, value: str, name: str, *, low: str | None = None, high: str | None = None
) -> Specification:
    """Draw a dot at `value` for each `name`, and a bar over its interval from `low` to `high`.

    All arguments but `rows` are columns.
    """
    rows = _drawn(rows, value)
    ends = [value, *(column for column in (low, high) if column)]
    across = scale([number for column in ends for number in _column(rows, column)], nice=True)
    base = alt.Chart(alt.NamedData("rows")).encode(alt.Y(**category(name, title=None, sort=None)))
    dot = base.mark_point().encode(
        alt.X(**quantity(value), scale=across), tooltip=_tooltip(rows, name, value, low, high)
    )
    layers = [dot]
    if low is not None and high is not None:
        bar = base.mark_rule(strokeWidth=2, color="var(--c7)")
        from_low = alt.X(**quantity(low, title=_title(value)), scale=across)
        layers.insert(0, bar.encode(from_low, alt.X2(field=_field(high))))
    return specification(alt.layer(*layers), 22 * _places(rows, name), rows=rows)


def bars(rows: Rows, value: str, name: str, *, series: str | None = None) -> Specification:
    """Draw a bar from zero to `value` for each `name`; bars of different `series` are adjacent.

    All arguments but `rows` are columns.
    """
    rows = _drawn(rows, value)
    chart = alt.Chart(alt.NamedData("rows")).mark_bar().encode(
        alt.X(**quantity(value)),
        alt.Y(**category(name, title=None, sort=None)),
        tooltip=_tooltip(rows, name, series, value),
    )  # fmt: skip
    if series is not None:
        chart = chart.encode(color(rows, series), alt.YOffset(**category(series, sort=None)))
    return specification(chart, 24 * _places(rows, name, series), rows=rows)


def matrix(rows: Rows, x: str, y: str, value: str) -> Specification:
    """Draw a square table of the column `value` by `x` and `y`, such as a confusion matrix.

    Larger values are darker. A cell is as high as it is wide, up to a limit that keeps two classes
    from filling the screen.
    """
    rows = _drawn(rows, value)
    shade = alt.Opacity(**quantity(value), legend=None, scale=alt.Scale(range=[0.04, 0.5]))
    base = alt.Chart(alt.NamedData("rows")).encode(
        alt.X(**category(x, sort=None), axis=alt.Axis(orient="top", labelAngle=-45 if
              _longest(rows, x) > 5 else 0)),
        alt.Y(**category(y, sort=None)),
    )  # fmt: skip
    cells = base.mark_rect(color="var(--accent)", stroke="var(--sheet)")
    cells = cells.encode(shade, tooltip=_tooltip(rows, y, x, value))
    layers = alt.layer(cells, base.mark_text().encode(alt.Text(**quantity(value))))
    classes, largest = _places(rows, y), max(map(len, map(str, _column(rows, value))), default=1)
    side = max(26, 8 * largest + 6, min(64, 480 // classes))
    found = specification(layers, side * classes, rows=rows)
    return {**found, "width": side * classes, "autosize": {"type": "pad"}}


def quantity(column: str, title: str | None = None) -> dict[str, Any]:
    """Return the encoding of a numeric column; `title` defaults to its name, capitalized."""
    return {"field": _field(column), "type": "quantitative", "title": title or _title(column)}


def category(column: str, **options: Any) -> dict[str, Any]:
    """Return the encoding of a column of names; `options` are further Vega-Lite fields."""
    return {"field": _field(column), "type": "nominal", "title": _title(column), **options}


def _title(column: str) -> str:
    return column[:1].upper() + column[1:]


def color(rows: Rows, column: str, **options: Any) -> alt.Color:
    """Encode a column by color, with a legend that fills the width of the chart.

    Args:
        rows: Data of the chart.
        column: Column of the colors.
        options: Further Vega-Lite fields.
    """
    return alt.Color(**_series(rows, column, **options))


def _series(
    rows: Rows, column: str, symbol: str | None = None, values: Sequence[str] = (), **options: Any
) -> dict[str, Any]:
    """Return the encoding of a column of series; channels that share it share one legend.

    The legend has the `values`, by default all of the scale, as symbols of the shape `symbol`, by
    default that of the mark.
    """
    pixels = 7 * _longest(rows, column) + 36
    columns = alt.ExprRef(f"max(1, floor((containerSize()[0] - 60) / {pixels}))")
    shape = alt.Undefined if symbol is None else symbol
    listed = list(values) or alt.Undefined
    legend = alt.Legend(columns=columns, symbolLimit=0, symbolType=shape, values=listed)
    return category(column, **{"title": None, "sort": None, "legend": legend, **options})


def scale(values: Iterable[float | None], **options: Any) -> alt.Scale:
    """Return a scale from the lowest to the highest value, without a forced zero.

    None, NaN and infinite values are ignored. Equal values get a margin on both sides: an axis of
    no extent has no readable ticks.
    """
    found = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(high) or 1.0
        return alt.Scale(**{**options, "domain": [low - room, high + room], "nice": False})
    return (
        alt.Scale(**options) if options.get("type") == "log" else alt.Scale(zero=False, **options)
    )


def _upward(values: Sequence[float], **options: Any) -> alt.Scale:
    """Return `scale`, which begins at zero where a margin would extend positive values below it."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    return scale(values, **options, **({"domainMin": 0} if 0 <= low < 0.05 * (high - low) else {}))


def _field(name: str) -> str:
    """Escape a column's name: Vega-Lite reads dots and brackets of a field as a path."""
    for mark in ("\\", ".", "[", "]"):
        name = name.replace(mark, f"\\{mark}")
    return name


def _column(rows: Rows, column: str) -> list[Any]:
    return [row[column] for row in rows if row.get(column) is not None]


def _longest(rows: Rows, column: str) -> int:
    return max((len(str(value)) for value in _column(rows, column)), default=1)


def _places(rows: Rows, name: str, series: str | None = None) -> int:
    names = {str(row.get(name)) for row in rows}
    parts = {str(row.get(series)) for row in rows} if series else {""}
    return max(len(names) * len(parts), 1)


def _drawn(rows: Rows, value: str) -> list[dict[str, Any]]:
    return [dict(row) for row in rows if row.get(value) is not None and row[value] == row[value]]


def _tooltip(rows: Rows, *columns: str | None) -> list[alt.Tooltip]:
    def channel(column: str) -> alt.Tooltip:
        found = _column(rows, column)
        if found and all(isinstance(value, int | float) for value in found):
            return alt.Tooltip(**quantity(column), format=".4~g")
        return alt.Tooltip(**category(column))

    return [channel(column) for column in columns if column is not None]
