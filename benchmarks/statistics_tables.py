"""Rewrite the tables of results/statistics.json in the pages that have a place for them.

    python benchmarks/statistics_tables.py README.md docs/*.md

A place is the text between `<!-- statistics: NAME -->` and `<!-- end -->`; NAME is a key of TABLES.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "statistics.json"
PLACE = re.compile(r"(<!-- statistics: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Cell = Mapping[str, Any]


def rewrite(text: str, results: Mapping[str, Any]) -> str:
    """Return a page with the present tables in its places.

    Raises:
        KeyError: for a place whose name is unknown.
    """

    def table(place: re.Match[str]) -> str:
        head, name, end = place.groups()
        return f"{head}{TABLES[name](results)}{end}"

    return PLACE.sub(table, text)


def sweeps(results: Mapping[str, Any]) -> str:
    """Summarize the simulated sweeps: the worst cell of each kind."""
    found = results["sweeps"]
    kinds: dict[str, list[Cell]] = {}
    for cell in found["cells"]:
        kinds.setdefault(_kind(cell), []).append(cell)
    rows = [
        [
            kind,
            len(cells),
            _percent(max(cell["wrong"][0] for cell in cells)),
            *(
                _percent(min(cell[name][0] for cell in cells))
                for name in ("winner", "default", "difference")
            ),
            _span([cell["better"][0] for cell in cells]),
        ]
        for kind, cells in kinds.items()
    ]
    columns = [
        "Simulated sweeps", "Cells", "Wrong verdicts, at most", "Winner's interval holds, at least",
        "Default's, at least", "Difference's, at least", "Verdict “better”",
    ]  # fmt: skip
    return _table(columns, rows) + _source(found, found["cells"])


def _kind(cell: Cell) -> str:
    if cell["seeds"] < 3:
        return "fewer than 3 seeds: no verdict"
    if cell["skill_spread"]:
        return "recipes differ"
    return "recipes are equal, extended once" if "extended_to" in cell else "recipes are equal"


def sweep_cells(results: Mapping[str, Any]) -> str:
    """List every simulated sweep."""
    names = {"trials": "Trials", "taste": "Taste", "top": "Candidates", "seeds": "Seeds",
             "rows": "Rows", "seed_spread": "Seed noise", "skill_spread": "Recipe spread"}  # fmt: skip
    rows = [
        [
            *(_extended(cell) if name == "trials" else f"{cell[name]:g}" for name in names),
            *(_with_interval(cell[name]) for name in ("wrong", "better", "winner", "difference")),
        ]
        for cell in results["sweeps"]["cells"]
    ]
    columns = [*names.values(), "Wrong verdicts", "“Better”", "Winner's interval holds",
               "Difference's holds"]  # fmt: skip
    return _table(columns, rows) + _source(results["sweeps"], results["sweeps"]["cells"])


def _extended(cell: Cell) -> str:
    return f"{cell['trials']} to {cell['extended_to']}" if "extended_to" in cell else cell["trials"]


def selections(results: Mapping[str, Any]) -> str:
    """List false verdicts of `eval --against` on the rows that chose the model."""
    cells = results["comparisons"]["best of candidates"]
    rows = [
        [cell["best_of"], cell["rows"], cell["metric"], f"{cell['alike']:g}",
         "yes" if cell["corrected"] else "no", _with_interval(cell["better"]),
         _with_interval(cell["worse"])]
        for cell in cells
    ]  # fmt: skip
    columns = ["Best of", "Rows", "Metric", "Correlation", "Corrected", "False “better”",
               "False “worse”"]  # fmt: skip
    return _table(columns, rows) + _source(results["comparisons"], cells)


def groups(results: Mapping[str, Any]) -> str:
    """List intervals and verdicts on rows that depend on each other, with and without groups."""
    cells = results["comparisons"]["dependent rows"]
    rows = [
        [cell["groups"], cell["rows_each"], "yes" if cell["by_group"] else "no",
         _with_interval(cell["covered"]), _with_interval(cell["wrong"])]
        for cell in cells
    ]  # fmt: skip
    columns = ["Groups", "Rows of each", "`--group-column`", "Interval holds", "Wrong verdicts"]
    return _table(columns, rows) + _source(results["comparisons"], cells)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "sweeps": sweeps,
    "sweep-cells": sweep_cells,
    "selections": selections,
    "groups": groups,
}


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _span(shares: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(map(_percent, (min(shares), max(shares)))))


def _with_interval(rate: Sequence[float]) -> str:
    value, low, high = rate
    return f"{_percent(value)} ({100 * low:.1f} to {100 * high:.1f})"


def _source(found: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    worlds = _numbers(cell["worlds"] for cell in cells)
    return (
        f"\n{worlds} simulated worlds a cell; `{found['command']}`, {found['date']}, "
        f"commit {found['versions']['commit'][:10]}.\n"
    )


def _numbers(values: Any) -> str:
    return " to ".join(f"{value:,}" for value in sorted(set(values)))


def main() -> None:
    """Rewrite the pages that are named."""
    results = json.loads(RESULTS.read_text())
    for path in map(Path, sys.argv[1:]):
        path.write_text(rewrite(path.read_text(), results))


if __name__ == "__main__":
    main()
