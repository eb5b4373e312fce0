"""What the dashboard says of a sweep: its result, its confirmation, and what it must not be misled by."""

import json
import math
import os
import re
from pathlib import Path

from support.sample_runs import write_confirming, write_run, write_sweep

from trainyard.report.dashboard.records import Sweep
from trainyard.report.dashboard.run_page import interval, score_cell
from trainyard.report.dashboard.server import Dashboard
from trainyard.report.dashboard.sweep_charts import learning_curves, ranked
from trainyard.report.dashboard.sweep_page import _verdict, compared
from trainyard.storage.records import Files


def test_a_trial_that_diverged_is_among_the_best_nowhere(tmp_path: Path) -> None:
    sweep = Sweep(Files(), write_sweep(tmp_path / "s", 24), "s")
    lost = [trial for trial in sweep.trials if trial.status == "diverged"]
    assert all(trial.best is not None for trial in lost)
    assert all(math.isnan(float(score_cell(trial).sort or 0)) for trial in lost)
    assert not {trial.name for trial in lost} & {trial.name for trial, *_ in ranked(sweep)}
    assert not [h for h, _ in compared(sweep)[1] if h in [trial.hyperparameters for trial in lost]]
    assert "before it diverged" in str(Dashboard(tmp_path).page("s", site=None))
    chart = learning_curves(sweep)
    assert chart["layer"][0]["data"] == {"name": "diverged"}
    dashed = chart["datasets"]["diverged"]
    assert {row["trial"] for row in dashed} == {trial.name for trial in lost}


def test_where_the_winner_was_worse_the_default_recipe_is_named(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s", 12, verdict="worse")
    page = str(Dashboard(tmp_path).page("s", site=None))
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("<main")[2]))
    assert "Result Default recipe in best.yaml and model/ Its F1 of the second class (f1) " in shown
    assert "(f1) 0.8733 0.859 to 0.887" in shown
    assert (
        "Worse when run again trial-003" in shown
    )  # and not trial-011, which scored most in the search
    assert "In the default recipe" in shown
    assert "Corrected f1" not in shown
    assert "0.8733" in str(Dashboard(tmp_path).page("", site=None))


def test_a_sweep_shows_its_warnings(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", 12)
    record = json.loads((folder / "sweep.json").read_text())
    record["warnings"] = ["warning: 2 of 40 rows of validation occur in train too"]
    (folder / "sweep.json").write_text(json.dumps(record))
    page = str(Dashboard(tmp_path).page("s", site=None))
    assert "2 of 40 rows of validation occur in train too." in page


def test_an_interval_without_width_is_not_shown_as_certainty(tmp_path: Path) -> None:
    result = {"metrics": {"validation": {"f1": 1.0}}, "score": 1.0, "best_step": 340}
    spans = {"validation": {"f1": [1.0, 1.0]}}
    write_run(tmp_path / "r", result={**result, "score_metric": "f1", "intervals": spans})
    for page, words in (
        ("", "no interval<"),
        ("r", "no interval: all resamples of the rows agree"),
    ):
        shown = str(Dashboard(tmp_path).page(page, site=None))
        assert words in shown
        assert "1.000 to 1.000" not in shown
    assert [interval(0.85, 0.905), interval(None, 1.0)] == ["0.850 to 0.905", ""]

    sweep = Sweep(Files(), write_sweep(tmp_path / "s", 12, verdict="better"), "s")
    for ends, words in (
        ({"low": 0.02, "high": 0.02}, " (no interval: all resamples of the rows agree)"),
        ({"low": 0.01, "high": 0.03}, " (95\u00a0% interval 0.010 to 0.030)"),
        ({}, ""),
    ):
        sweep.confirmation = {**sweep.confirmation, "difference": {"value": 0.02, **ends}}
        assert f": F1 of the second class (f1) +0.0200{words}, each run again" in _verdict(sweep)


def test_confirming_runs_are_seen_before_there_is_a_verdict(tmp_path: Path) -> None:
    write_confirming(tmp_path / "s")
    page = str(Dashboard(tmp_path).page("s", site="/"))
    for seed in range(3):
        assert f'href="/view/s/confirmation/default-seed-{seed}"' in page
    assert "the verdict comes when they have finished" in page
    assert (
        "No space left on device" in page.partition("Confirming runs")[2].partition("</table>")[0]
    )


def test_half_characters_foreign_names_and_links_hurt_nobody(tmp_path: Path) -> None:
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    write_run(runs / "run", task="\ud800", reason="\udfff")
    write_sweep(runs / "sweep", 12, verdict="\ud800")
    write_run(runs / os.fsdecode(b"not-\xff-text"))
    write_sweep(outside / "sweep", 12)
    (runs / "linked").mkdir()
    (runs / "linked" / "sweep.json").write_text('{"metric": "f1"}')
    (runs / "linked" / "trials").symlink_to(outside / "sweep" / "trials")
    (tmp_path / "here").symlink_to(runs)
    for storage in (runs, tmp_path / "here"):
        dashboard = Dashboard(storage)
        assert list(dashboard.yard().runs) == ["run"]
        assert list(dashboard.yard().sweeps) == ["linked", "sweep"]
        assert dashboard.page("linked/trials/trial-000", site="/") is None
        for key in ("", "run", "sweep", "linked"):
            assert b"<h1>" in str(dashboard.page(key, site="/")).encode()
