"""What the suite's table says, and what it must not leave unsaid."""

from pathlib import Path
from typing import Any

import pytest

from trainyard.glue.config import SuiteConfig
from trainyard.glue.report import as_markdown, page
from trainyard.glue.table import summary
from trainyard.stats import mean_interval


def result(seed: int, f1: float, rows: dict[str, int] | None = None) -> dict[str, Any]:
    return {
        "rows": rows or {"train": 3668, "validation": 408},
        "score": f1, "seconds": 10.0 * seed, "train_samples_per_second": 100.0 + seed,
        "metrics": {"validation": {"accuracy": f1 - 0.1, "f1": f1}},
        "intervals": {"validation": {"accuracy": [0.6, 0.9], "f1": [0.7, 0.95]}},
        "versions": {"torch": "2.13.0", "commit": "a" * 40}, "one_answer": {},
    }  # fmt: skip


def test_the_table_by_hand(tmp_path: Path) -> None:
    config = SuiteConfig(tasks=("mrpc", "rte"), seeds=(1, 2, 3), storage_path=str(tmp_path))
    runs = [config.run_config(task, seed) for task in config.tasks for seed in config.seeds]
    configs = {run.resolved_run_name: run for run in runs}
    scores = {1: 0.80, 2: 0.84, 3: 0.88}
    rows = {"train": 1000, "validation": 408}
    finished = {f"mrpc-seed-{seed}": result(seed, f1, rows) for seed, f1 in scores.items()}
    failed = {f"rte-seed-{seed}": "no data" for seed in config.seeds}
    found = summary(configs, finished, failed)
    mrpc, rte = found["tasks"]
    f1 = mrpc["metrics"][1]
    mean, low, high = mean_interval(list(scores.values()))
    assert f1["mean"] == pytest.approx(mean)
    assert f1["sd"] == pytest.approx(0.04)
    assert f1["seeds_interval"] == pytest.approx([low, high])
    assert f1["rows_interval"] == pytest.approx([0.7, 0.95])
    assert mrpc["glue"]["mean"] == pytest.approx(100 * (0.84 + 0.74) / 2)
    assert found["average"]["tasks"] == ["mrpc"]
    assert found["average"]["mean"] == pytest.approx(79.0)
    assert mrpc["samples_of"] == {"train": 3668}
    assert rte["failed"] == failed
    text = as_markdown({"model": "m", **found})
    assert "| mrpc \\* | accuracy | 3 | 74.0 | 4.0 |" in text
    assert "\\* mrpc train is a sample: 1,000 of 3,668 rows" in text
    assert "rte-seed-1 failed: no data" in text
    assert "| This suite | 74.0/84.0 \\* |  |  |" in text
    assert "88.85" in text
    assert (
        "- Average of 1 task (mrpc): **79.0 \\* (95 % over seeds" in text
    )  # the average counts a sample
    assert "| rte | Failed | 0 |" in text
    html = page({"model": "m", **found})
    assert "Average of 1 task (mrpc)" in html
    assert "74.0/84.0 *" in html


def test_equal_scores_of_one_answer_are_no_interval(tmp_path: Path) -> None:
    config = SuiteConfig(tasks=("mrpc",), seeds=(1, 2), storage_path=str(tmp_path))
    configs = {f"mrpc-seed-{seed}": config.run_config("mrpc", seed) for seed in config.seeds}
    finished = {name: result(1, 0.812) for name in configs}
    (equal,) = summary(configs, finished, {})["tasks"]
    assert equal["metrics"][1]["seeds_interval"] == pytest.approx([0.812, 0.812])
    for run in finished.values():
        run["one_answer"] = {"validation": "equivalent"}
    found = {"model": "m", **summary(configs, finished, {})}
    (row,) = found["tasks"]
    for figures in (*row["metrics"], row["score"], row["glue"], found["average"]):
        assert figures["mean"] is not None
        assert (figures["sd"], figures["seeds_interval"]) == (None, None)
    words = (
        "mrpc-seed-2: the model answers 'equivalent' for every row of validation, so the score says"
    )
    assert words in as_markdown(found)
    finished["mrpc-seed-1"] = result(1, 0.9)  # the other one is a seed like any
    (row,) = summary(configs, finished, {})["tasks"]
    assert row["metrics"][1]["seeds_interval"] is not None


def test_versions_are_those_of_the_runs(tmp_path: Path) -> None:
    config = SuiteConfig(tasks=("mrpc",), seeds=(1, 2), storage_path=str(tmp_path))
    configs = {f"mrpc-seed-{seed}": config.run_config("mrpc", seed) for seed in config.seeds}
    finished = {name: result(1, 0.8) for name in configs}
    found = {"model": "m", **summary(configs, finished, {})}
    assert found["versions"] == {"torch": "2.13.0", "commit": "a" * 40}
    assert "different versions" not in as_markdown(found)
    assert "commit aaaaaaaaaa" in page(found)
    finished["mrpc-seed-2"]["versions"] = {"torch": "2.14.0", "commit": None}
    found = {"model": "m", **summary(configs, finished, {})}
    assert found["versions"]["torch"] == "2.13.0, 2.14.0"
    note = "different versions of torch: 2.13.0 (mrpc-seed-1); 2.14.0 (mrpc-seed-2)."
    assert note in as_markdown(found)
    assert "runs of several commits" in page(found)


def test_what_is_not_run_yet_is_not_failed(tmp_path: Path) -> None:
    config = SuiteConfig(tasks=("mrpc",), seeds=(1,), storage_path=str(tmp_path))
    found = {"model": "m", **summary({"mrpc-seed-1": config.run_config("mrpc", 1)}, {}, {})}
    for text in (as_markdown(found), page(found)):
        assert "Not run yet" in text
        assert "Failed |" not in text
        assert "Failed</" not in text


def test_the_table_says_what_sets_it_apart_from_published_ones(tmp_path: Path) -> None:
    config = SuiteConfig(
        tasks=("mnli", "rte"), seeds=(1,), warm_start=True, max_steps=80, storage_path=str(tmp_path)
    )
    runs = {
        run.resolved_run_name: run for task in config.tasks for run in [config.run_config(task, 1)]
    }
    found = {"model": "m", **summary(runs, {}, {})}
    text = as_markdown(found)
    assert "rte starts from the mnli model of the same seed" in text
    assert "mnli starts" not in text
    assert "mnli was not trained by its own recipe, but with max_steps 80." in text


def test_one_seed_has_no_interval_over_seeds(tmp_path: Path) -> None:
    config = SuiteConfig(tasks=("mrpc",), seeds=(1,), storage_path=str(tmp_path))
    run = config.run_config("mrpc", 1)
    found = summary({"mrpc-seed-1": run}, {"mrpc-seed-1": result(1, 0.8)}, {})
    assert found["tasks"][0]["metrics"][1]["seeds_interval"] is None
    assert found["tasks"][0]["metrics"][1]["sd"] is None
    assert found["average"]["seeds_interval"] is None


def test_of_runs_that_did_not_count_their_rows_no_number_is_said(tmp_path: Path) -> None:
    config = SuiteConfig(tasks=("mrpc",), seeds=(1,), storage_path=str(tmp_path))
    old = {**result(1, 0.8), "rows": {}}
    found = summary({"mrpc-seed-1": config.run_config("mrpc", 1)}, {"mrpc-seed-1": old}, {})
    line = next(
        line for line in as_markdown({"model": "m", **found}).splitlines() if "| mrpc" in line
    )
    assert line.endswith("| 60.0 to 90.0 | – | 101 | 10 |")


def test_shorter_rows_and_coarser_numbers_are_said(tmp_path: Path) -> None:
    config = SuiteConfig(
        tasks=("rte",),
        seeds=(1,),
        max_length=32,
        mixed_precision="bf16",
        storage_path=str(tmp_path),
    )
    runs = {"rte-seed-1": config.run_config("rte", 1)}
    found = {"model": "m", **summary(runs, {}, {"rte-seed-1": "holds no <task>/<split>.parquet"})}
    text = as_markdown(found)
    assert "by its own recipe, but with max_length 32, mixed_precision bf16." in text
    assert r"\<task>/\<split>.parquet" in text  # Markdown would hide <task>
