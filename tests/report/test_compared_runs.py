"""Charts of the Compare page, where each run keeps its color and shape."""

import json
import re
from pathlib import Path
from typing import Any

from support.sample_runs import write_run

from trainyard.report.dashboard.server import Dashboard
from trainyard.report.kit import charts


def test_a_run_looks_the_same_in_every_chart(tmp_path: Path) -> None:
    """A chart that lacks a run leaves out its line and its legend, not its color."""
    runs = ["a", "b", "c"]
    for run in runs:
        write_run(tmp_path / run)
    path = tmp_path / "b" / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines(keepends=True) if "split" in line]
    path.write_text("".join(lines))  # no training losses
    page = str(Dashboard(tmp_path).comparison(runs, site="/"))
    legends: list[Any] = []
    for text in re.findall(r'application/json">(.*?)</script>', page):
        channels = json.loads(text)["encoding"]
        for name in ("color", "shape", "strokeDash"):
            if name in channels:
                assert channels[name]["scale"]["domain"] == runs, name
        assert "color" in channels
        legends.append(channels["color"]["legend"]["values"])
    assert legends == [runs, ["a", "c"], runs]


def test_an_axis_of_positive_values_does_not_begin_below_zero() -> None:
    for low, begins in ((0.02, 0), (0.0, 0), (0.5, None), (-0.1, None)):
        rows = [{"step": 1, "loss": low}, {"step": 2, "loss": 1.5}]
        scale = charts.lines(rows, "step", "loss", points=True)["encoding"]["y"]["scale"]
        assert scale.get("domainMin") == begins, low
