"""Table of results/unbalanced.json."""

from markdown_tables import load, source, table


def unbalanced() -> str:
    """List scores by seed, and differences from the plain variant, see unbalanced.py."""
    found = load("unbalanced")
    rows = []
    for name, data in found.items():
        for variant, figures in data["variants"].items():
            for metric, cell in figures.items():
                interval = (
                    "{:+.3f} to {:+.3f}".format(*cell["interval"]) if "interval" in cell else ""
                )
                gain = f"{cell['difference']:+.3f}" if "difference" in cell else ""
                by_seed = ", ".join(f"{value:.4f}" for value in cell["values"])
                rows.append([name, variant, metric, by_seed, gain, interval])
    columns = ["Data", "Variant", "Metric", "By seed", "Less plain", "95 % over seeds"]
    return table(columns, rows) + source(*found.values())
