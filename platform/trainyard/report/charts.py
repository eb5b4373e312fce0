"""Charts for `page.Figure`: rows of plain values in, a Vega-Lite specification out.

Colours are the page's CSS variables, so a chart follows light, dark and print by itself; shapes or
direct labels tell series apart as well, for those who do not see the colours. Values that are None
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
    "axisXQuantitative": {"tickCount": 8, "grid": False, "domainColor": "var(--muted)"},
    "legend": {
        "labelColor": "var(--ink)", "titleColor": "var(--muted)", "labelFontSize": 12,
        "titleFontSize": 12, "titleFontWeight": 400, "orient": "top", "labelLimit": 320,
        "symbolStrokeWidth": 2,
    },
    "header": {"labelColor": "var(--muted)", "titleColor": "var(--muted)"},
    "text": {"color": "var(--ink)", "fontSize": 12},
    "rule": {"color": "var(--muted)"},
    "point": {"color": "var(--c1)", "filled": True, "size": 60},
    "bar": {"color": "var(--c1)"},
    "line": {"color": "var(--c1)", "strokeWidth": 2},
}  # fmt: skip


def specification(chart: Any, *, height: int | Mapping[str, int] | None = None) -> dict[str, Any]:
    """An Altair chart as the page draws it: as wide as its place, in the page's colours."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec.pop("config", None)
    spec["config"] = CONFIG
    spec["width"], spec["autosize"] = "container", {"type": "fit-x", "contains": "padding"}
    if height is not None:
        spec["height"] = height
    return spec


def lines(
    rows: Rows,
    x: str,
    y: str,
    series: str | None = None,
    *,
    points: bool = False,
    height: int = 260,
) -> dict[str, Any]:
    """`y` along `x`, a line for each value of `series`; columns are named as axes are titled."""
    import altair as alt

    colour = {} if series is None else {"color": alt.Color(_field(series), type="nominal")}
    chart = (
        alt.Chart(alt.Data(values=_finite(rows, y)))
        .mark_line(point=points)
        .encode(
            x=alt.X(_field(x), type="quantitative", title=x),
            y=alt.Y(_field(y), type="quantitative", title=y, scale=alt.Scale(zero=False)),
            tooltip=_tooltip(rows, [c for c in (series, x, y) if c]),
            **colour,
        )
    )
    return specification(chart, height=height)


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
    import altair as alt

    base = alt.Chart(alt.Data(values=_finite(rows, value)))
    encoding: dict[str, Any] = {"y": alt.Y(_field(name), type="nominal", title=None, sort=None)}
    if series is not None:
        encoding["yOffset"] = alt.YOffset(_field(series), type="nominal")
        encoding["color"] = alt.Color(_field(series), type="nominal", title=series)
    position = alt.X(
        _field(value), type="quantitative", title=value, scale=alt.Scale(zero=False, nice=True)
    )
    columns = [column for column in (name, series, value, low, high) if column]
    marks = base.mark_point().encode(x=position, tooltip=_tooltip(rows, columns), **encoding)
    if low is not None and high is not None:
        bars = base.mark_rule(strokeWidth=2, color="var(--c7)").encode(
            x=alt.X(_field(low), type="quantitative", title=value), x2=_field(high), **encoding
        )
        marks = alt.layer(bars, marks)
    return specification(marks, height={"step": 22})


def bars(
    rows: Rows, value: str, name: str, *, series: str | None = None, stack: bool = False
) -> dict[str, Any]:
    """A bar from zero to `value` for each `name`; `series` beside each other, or stacked."""
    import altair as alt

    encoding: dict[str, Any] = {}
    if series is not None:
        encoding["color"] = alt.Color(_field(series), type="nominal", title=series, sort=None)
        if not stack:
            encoding["yOffset"] = alt.YOffset(_field(series), type="nominal", sort=None)
    chart = (
        alt.Chart(alt.Data(values=_finite(rows, value)))
        .mark_bar()
        .encode(
            x=alt.X(_field(value), type="quantitative", title=value),
            y=alt.Y(_field(name), type="nominal", title=None, sort=None),
            tooltip=_tooltip(rows, [c for c in (name, series, value) if c]),
            **encoding,
        )
    )
    return specification(chart, height={"step": 24})


def histogram(
    rows: Rows, value: str, *, series: str | None = None, bins: int = 40
) -> dict[str, Any]:
    """How often values of `value` occur."""
    import altair as alt

    colour = {} if series is None else {"color": alt.Color(_field(series), type="nominal")}
    chart = (
        alt.Chart(alt.Data(values=_finite(rows, value)))
        .mark_bar()
        .encode(
            x=alt.X(
                _field(value),
                type="quantitative",
                title=value,
                bin=alt.Bin(maxbins=bins),
                axis=alt.Axis(tickCount=8),
            ),
            y=alt.Y(aggregate="count", type="quantitative", title="rows"),
            **colour,
        )
    )
    return specification(chart, height=220)


def matrix(rows: Rows, x: str, y: str, value: str) -> dict[str, Any]:
    """A table of `value` by `x` and `y`, darker where it is larger: confusion, overlap."""
    import altair as alt

    base = alt.Chart(alt.Data(values=_finite(rows, value))).encode(
        x=alt.X(_field(x), type="nominal", sort=None, title=x, axis=alt.Axis(labelAngle=0)),
        y=alt.Y(_field(y), type="nominal", sort=None, title=y),
    )
    squares = base.mark_rect(color="var(--accent)", stroke="var(--sheet)").encode(
        opacity=alt.Opacity(
            _field(value), type="quantitative", legend=None, scale=alt.Scale(range=[0.04, 0.5])
        ),
        tooltip=_tooltip(rows, [y, x, value]),
    )
    texts = base.mark_text().encode(text=alt.Text(_field(value), type="quantitative"))
    return specification(alt.layer(squares, texts), height={"step": 40})


def _field(name: str) -> str:
    """A column's name as a Vega-Lite field: dots and brackets would be read as paths."""
    for mark in ("\\", ".", "[", "]"):
        name = name.replace(mark, f"\\{mark}")
    return name


def _finite(rows: Rows, value: str) -> list[dict[str, Any]]:
    return [dict(row) for row in rows if row.get(value) is not None and row[value] == row[value]]


def _tooltip(rows: Rows, columns: Sequence[str]) -> list[Any]:
    import altair as alt

    def kind(column: str) -> str:
        seen = [row[column] for row in rows if row.get(column) is not None]
        numbers = all(isinstance(value, int | float) for value in seen)
        return "quantitative" if seen and numbers else "nominal"

    return [
        alt.Tooltip(
            _field(c), type=kind(c), title=c, **({"format": ".4~g"} if kind(c) != "nominal" else {})
        )
        for c in columns
    ]
