"""Words and numbers of pages: capitals, plurals, and one way to write a percentage."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.job_scripts import ROOT
from support.sample_reports import evaluation_page, glue_page
from support.sample_runs import write_run, write_sweep

from trainyard.doctor.data.report import findings
from trainyard.evaluation.report import _sentence, _slice, _title, _verdict
from trainyard.metrics import METRICS, metric_label
from trainyard.report.dashboard.server import Dashboard


def specifications(html: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in re.findall(r'application/json">(.*?)</script>', html)]


def titles(spec: Any) -> Iterator[str]:
    """Titles of the axes and tooltips of a chart."""
    if isinstance(spec, dict):
        for name, value in spec.items():
            if name == "title" and isinstance(value, str):
                yield value
            elif name not in ("config", "datasets"):
                yield from titles(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from titles(value)


def visible(html: str) -> str:
    """Text of a page, without tags, scripts and styles."""
    main = re.sub(r"<script.*?</script>", "", html.partition("<main")[2], flags=re.S)
    return re.sub(r"<[^>]+>", "\n", main)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("yard")
    write_run(path / "run")
    write_sweep(path / "sweep", 24)
    return path


@pytest.fixture(scope="module")
def pages(storage: Path) -> dict[str, str]:
    dashboard = Dashboard(storage)
    return {
        "evaluation": evaluation_page(),
        "suite": glue_page(storage),
        **{key: str(dashboard.page(key, site=None)) for key in ("run", "sweep")},
    }


def test_charts_have_capitals_like_tables(pages: dict[str, str]) -> None:
    for name, html in pages.items():
        found = {title for spec in specifications(html) for title in titles(spec)} - {"f1"}
        assert found or name == "suite"
        assert not [title for title in found if title[:1].islower()], name
    legends = {
        str(row[column])
        for html in pages.values()
        for spec in specifications(html)
        for rows in spec["datasets"].values()
        for row in rows
        for column in ("answers", "state", "rows", "fifth")
        if isinstance(row.get(column), str)
    }
    assert {"Right", "Wrong", "Finished", "Training", "Validation", "Best"} <= legends
    assert not [text for text in legends - {"diverged"} if text[:1].islower()]


def test_the_name_of_the_only_split_takes_no_room_in_a_chart(pages: dict[str, str]) -> None:
    (rows,) = specifications(pages["evaluation"])[0]["datasets"].values()
    assert [row["metric"] for row in rows] == ["Accuracy"]


def test_a_metric_has_one_name_on_the_pages_of_runs_sweeps_and_evaluations(
    storage: Path,
) -> None:
    """It is the title, with the key of flags and files where that is another word.

    Headers and cells of tables have room for the key alone, and the page explains it.
    """
    dashboard = Dashboard(storage)
    pages = {key: str(dashboard.page(key, site="/")) for key in ("run", "sweep", "")}
    pages["compared"] = str(dashboard.comparison(["run", "sweep/trials/trial-000"], site="/"))
    name = metric_label("f1")
    assert name == _title("f1") == "F1 of the second class (f1)"
    roomy = r'(?:<p class="headline">|<h1>|<h2[^>]*>|<dt>|data-name=")([^"<]*)'
    for key in ("run", "sweep", "compared"):
        naming = [t for t in re.findall(roomy, pages[key]) if re.search(r"\bf1\b", t, re.I)]
        assert naming, key
        assert [text for text in naming if name not in text] == [], key
    cells = {key: re.findall(r"<(?:td|button)[^>]*>f1<", html) for key, html in pages.items()}
    assert [key for key in ("sweep", "", "compared") if not cells[key]] == []
    assert [key for key in cells if cells[key] and METRICS["f1"].title not in pages[key]] == []
    assert _title("balanced_accuracy") == "Balanced accuracy"
    assert _title("of-an-older-release") == "Of-an-older-release"


def test_the_docs_quote_the_labels_of_a_sweep_as_its_page_has_them(tmp_path: Path) -> None:
    record = write_sweep(tmp_path / "sweep", 12) / "sweep.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "metric": "f1_macro"}))
    page = visible(str(Dashboard(tmp_path).page("sweep", site="/"))).split("\n")
    docs = (ROOT / "docs" / "tune.md").read_text().partition("(assets/sweep.png)")[2]
    quoted = re.findall(r"\*([^*]+)\*", docs.partition("\n#")[0])
    assert len(quoted) == 2
    assert [label for label in quoted if label.replace("\n", " ") not in page] == []


def test_percentages_are_written_as_in_the_docs(pages: dict[str, str]) -> None:
    for name, html in pages.items():
        assert re.search(r"\d[ \u00a0]%", visible(html)), name
        assert not re.findall(r"\d%", visible(html)), name


def test_names_keep_their_case_and_texts_have_no_markup(pages: dict[str, str]) -> None:
    assert 'class="headline">ours ' in pages["evaluation"]
    assert "`" not in visible(pages["evaluation"])
    assert _verdict("no verdict on a and b: rows").startswith("No verdict on a")
    assert _verdict("bert-base is better than b").startswith("bert-base")
    assert [_slice("length"), _slice("eCommerce")] == ["Length", "eCommerce"]
    assert _sentence("runs/mail is old") == "runs/mail is old"


@pytest.mark.parametrize(("count", "expected"), [
    (1, ["1 of 9 rows of train has no label (-1); label or remove it",
         "1 of 9 rows of test also occurs in train (1 identical); remove it",
         "1 text occurs with different labels (2 rows); at least one of its labels is wrong",
         "1 row of train has an empty text",
         "1 row of train (11.1 %) is truncated to 8 tokens: 1 token is lost",
         "1 of 9 rows of test has a near duplicate in train",
         "only 1 of 1000 rows of train has the label a",
         "1 of 9 rows of train repeats an earlier one (1 identical)",
         "1 row of train has a near duplicate in the same split",
         "about 1 of 9 labels of train differs from what"]),
    (2, ["2 of 9 rows of train have no label (-1); label or remove them",
         "2 of 9 rows of test also occur in train (2 identical); remove them",
         "2 texts occur with different labels (4 rows); at least one of the labels of each is wrong",
         "2 rows of train have an empty text",
         "2 rows of train (22.2 %) are truncated to 8 tokens: 2 tokens are lost",
         "2 of 9 rows of test have a near duplicate in train",
         "only 2 of 1000 rows of train have the label a",
         "2 of 9 rows of train repeat an earlier one (2 identical)",
         "2 rows of train have a near duplicate in the same split",
         "about 2 of 9 labels of train differ from what"]),
])  # fmt: skip
def test_findings_of_the_data_doctor_agree_in_number(count: int, expected: list[str]) -> None:
    same = {"exact": count, "normalized": count, "near": count, "rows": 9}
    report: dict[str, Any] = {
        "rows": {"train": {"rows": 9, "missing_labels": count}},
        "duplicates": {
            "between": [{"first": "train", "second": "test", **same}], "inside": {"train": same},
        },
        "contradictions": {"texts": count, "rows": 2 * count},
        "texts": {"train": {"empty": {"rows": count}}},
        "max_length": 8,
        "truncation": {"train": {"rows": 9, "truncated_rows": count, "lost_tokens": count}},
        "balance": {},
        "drift": [],
        "labels": {"trustworthy": True, "estimated_wrong": count, "rows": 9, "split": "train"},
    }  # fmt: skip
    found = [finding["sentence"] for finding in findings(report)]
    rare = {
        "rows": {"train": {"rows": 1000, "missing_labels": 0}},
        "balance": {"train": {"a": count}},
    }
    found += [f["sentence"] for f in findings({**report, **rare}) if f["check"] == "balance"]
    for sentence in expected:
        assert any(each.startswith(sentence) for each in found), (sentence, found)
