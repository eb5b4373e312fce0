"""Tables of the simulations and of the data doctor."""

from collections.abc import Sequence

from markdown_tables import Result, load, percent, share, source, table


def sweeps() -> str:
    """Summarize the simulated sweeps: the worst cell of each kind."""
    found = load("statistics")["sweeps"]
    kinds: dict[str, list[Result]] = {}
    for cell in found["cells"]:
        kinds.setdefault(_kind(cell), []).append(cell)
    rows = [
        [
            kind,
            len(cells),
            percent(max(cell["wrong"][0] for cell in cells)),
            *(
                percent(min(cell[name][0] for cell in cells))
                for name in ("winner", "default", "difference")
            ),
            span([cell["better"][0] for cell in cells]),
        ]
        for kind, cells in kinds.items()
    ]
    columns = [
        "Simulated sweeps", "Cells", "Wrong verdicts, at most", "Winner's interval holds, at least",
        "Default's, at least", "Difference's, at least", "Verdict “better”",
    ]  # fmt: skip
    return table(columns, rows) + worlds(found["cells"]) + source(found)


def _kind(cell: Result) -> str:
    if cell["seeds"] < 3:
        return "fewer than 3 seeds: no verdict"
    if cell["skill_spread"]:
        return "recipes differ"
    return "recipes are equal, extended once" if "extended_to" in cell else "recipes are equal"


def sweep_cells() -> str:
    """List every simulated sweep."""
    found = load("statistics")["sweeps"]
    names = {"trials": "Trials", "taste": "Taste", "top": "Candidates", "seeds": "Seeds",
             "rows": "Rows", "seed_spread": "Seed noise", "skill_spread": "Recipe spread"}  # fmt: skip
    rows = [
        [
            *(_extended(cell) if name == "trials" else f"{cell[name]:g}" for name in names),
            *(share(cell[name]) for name in ("wrong", "better", "winner", "difference")),
        ]
        for cell in found["cells"]
    ]
    columns = [*names.values(), "Wrong verdicts", "“Better”", "Winner's interval holds",
               "Difference's holds"]  # fmt: skip
    return table(columns, rows) + worlds(found["cells"]) + source(found)


def _extended(cell: Result) -> str:
    return f"{cell['trials']} to {cell['extended_to']}" if "extended_to" in cell else cell["trials"]


def selections() -> str:
    """List false verdicts of `eval --against` on the rows that chose the model."""
    found = load("statistics")["comparisons"]
    cells = found["best of candidates"]
    rows = [
        [cell["best_of"], cell["rows"], cell["metric"], f"{cell['alike']:g}",
         "yes" if cell["corrected"] else "no", share(cell["better"]),
         share(cell["worse"])]
        for cell in cells
    ]  # fmt: skip
    columns = ["Best of", "Rows", "Metric", "Correlation", "Corrected", "False “better”",
               "False “worse”"]  # fmt: skip
    return table(columns, rows) + worlds(cells) + source(found)


def groups() -> str:
    """List intervals and verdicts on rows that depend on each other, with and without groups."""
    found = load("statistics")["comparisons"]
    cells = found["dependent rows"]
    rows = [
        [cell["groups"], cell["rows_each"], "yes" if cell["by_group"] else "no",
         share(cell["covered"]), share(cell["wrong"])]
        for cell in cells
    ]  # fmt: skip
    columns = ["Groups", "Rows of each", "`--group-column`", "Interval holds", "Wrong verdicts"]
    return table(columns, rows) + worlds(cells) + source(found)


def worlds(cells: Sequence[Result]) -> str:
    """State the number of simulated worlds of each cell."""
    counts = " to ".join(f"{count:,}" for count in sorted({cell["worlds"] for cell in cells}))
    return f"\n{counts} simulated worlds a cell.\n"


def span(shares: Sequence[float]) -> str:
    """Format the smallest and the largest of some shares."""
    return " to ".join(dict.fromkeys(map(percent, (min(shares), max(shares)))))


def coverage() -> str:
    """List how often the intervals of scores contain the true value."""
    found = load("statistics")
    rows = [
        [
            name,
            f"{cell['rows']:,}",
            f"{cell['trials']:,}",
            share([cell["covered"], *cell["interval"]]),
        ]
        for name, cell in found["coverage"].items()
    ]
    columns = ["Metric, task", "Rows", "Simulated sets", "The 95 % interval holds the truth"]
    return table(columns, rows) + source({"versions": found["versions"]})


def near_duplicates() -> str:
    """Compare the near-duplicate join with MinHash LSH."""
    rows, results = [], []
    for task in ("cola", "sst2", "stsb"):
        found = load(f"near-duplicates-{task}")
        results.append(found)
        ours, peer = found["exact join"], found["datasketch"]
        rows.append(
            [
                task.upper(),
                f"{ours['pairs']} in {ours['seconds']:.1f} s",
                f"{peer['pairs']} in {peer['seconds']:.1f} s",
            ]
        )
    columns = ["Validation rows near a training row", "Exact join", "datasketch's LSH"]
    return table(columns, rows) + source(*results)


def flipped_labels() -> str:
    """List the precision of suspicious labels where 5 % of the labels are flipped."""
    found = load("doctor")["flips"]
    shares = list(found["found"][0]["precision_at_recall"])
    rows = [
        [run["seed"], run["planted"], *(f"{run['precision_at_recall'][s]:.2f}" for s in shares)]
        for run in found["found"]
    ]
    columns = ["Seed", "Flipped", *(f"Precision at recall {s}" for s in shares)]
    return table(columns, rows) + source(found)


TABLES = {
    "sweeps": sweeps,
    "sweep-cells": sweep_cells,
    "selections": selections,
    "groups": groups,
    "coverage": coverage,
    "near-duplicates": near_duplicates,
    "flipped-labels": flipped_labels,
}
