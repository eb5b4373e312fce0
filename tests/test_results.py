"""Stored results: each names the commit that it was measured at, and that commit is in the history."""

import copy
import hashlib
import io
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import screenshots
from load import Outcome
from markdown_tables import RESULTS, load
from PIL import Image
from ports_table import answering, rows
from quickstart_seeds import START, stage_of
from result_tables import engines, strategy_matrix
from soak_serving import median_ms
from step_tables import quickstart
from support.job_scripts import ROOT

SCREENSHOTS = RESULTS / "screenshots.json"


def commits(found: Any) -> Iterator[str]:
    """Yield the commit of each `versions` in a result."""
    if isinstance(found, list):
        for item in found:
            yield from commits(item)
    elif isinstance(found, dict):
        if isinstance(versions := found.get("versions"), dict):
            yield str(versions.get("commit"))
        for item in found.values():
            yield from commits(item)


def test_commits_are_found_at_any_depth() -> None:
    found = {"versions": {"commit": "a+"}, "parts": [{"versions": {"commit": "b"}}, {"runs": 1}]}
    assert list(commits(found)) == ["a+", "b"]
    assert list(commits({"versions": {"python": "3.11"}})) == ["None"]


@cache
def history() -> frozenset[str]:
    """All commits that lead to this checkout; skips where they are not known."""
    shallow = _git("rev-parse", "--is-shallow-repository")
    if shallow != ["false"]:
        pytest.skip("needs a clone with its full history")
    return frozenset(_git("rev-list", "HEAD"))


def _git(*words: str) -> list[str]:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.split()


@pytest.mark.parametrize("name", [path.stem for path in sorted(RESULTS.glob("*.json"))])
def test_a_result_was_measured_at_a_commit_of_the_history(name: str) -> None:
    known = history()
    measured = {commit.rstrip("+") for commit in commits(load(name))}
    assert measured, f"{name}.json names no commit; write provenance() into it"
    assert measured <= known, f"{name}.json: {measured - known} is not in the history"


def test_every_picture_is_of_the_stored_run() -> None:
    pictures = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (ROOT / "docs" / "assets").glob("*.png")
    }
    assert json.loads(SCREENSHOTS.read_text())["pictures"] == pictures


def test_the_table_of_ports_has_every_kind_of_socket_and_what_it_answers() -> None:
    sockets = load("ports")["sockets"]
    table = {row[0]: row[1:] for row in rows(sockets)}
    assert len(table) == len({socket["kind"] for socket in sockets}) + 1
    refused = ["UNAUTHENTICATED", "UNAUTHENTICATED", "answers"]
    assert table["control store: gRPC"] == ["6379", "head", *refused]
    assert table["agents: gRPC"] == ["any", "all", *refused]
    assert table["dashboard and jobs: HTTP"] == ["8265", "head", "401", "403", "answers"]
    assert table["of these, `/` and `/api/gcs_healthz`"] == ["8265", "head", "200", "200", "200"]
    assert table["metrics: `GET /metrics`"][0] == "44217, 44227, others"


@pytest.mark.parametrize("kind", ["dashboard, HTTP", "NodeManagerService, gRPC"])
def test_a_socket_that_answers_without_the_token_shows(kind: str) -> None:
    same = [copy.deepcopy(found) for found in load("ports")["sockets"] if found["kind"] == kind]
    assert not answering(same, "none")
    request = next(
        request for request, status in same[0]["answers"]["none"].items()
        if status in (401, "UNAUTHENTICATED")
    )  # fmt: skip
    same[0]["answers"]["none"][request] = 200 if kind.endswith("HTTP") else "OK"
    assert answering(same, "none") == {str(same[0]["answers"]["none"][request])}
    assert "answers" in next(iter(rows(same)))[3]


def test_a_socket_of_an_unknown_kind_has_no_row() -> None:
    with pytest.raises(ValueError, match="unknown"):
        list(rows([{"kind": "unknown", "host": "head", "port": 1, "answers": {}}]))


def test_pictures_are_not_drawn_from_runs_of_another_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screenshots, "WORK", tmp_path / "work")
    run = tmp_path / "work" / "runs" / "mail"
    for commit, kept in (("a", False), ("a", True), ("b", False), ("b", True)):
        screenshots.forget_other_commits(commit)
        assert run.exists() == kept
        run.mkdir(parents=True, exist_ok=True)
    (tmp_path / "work" / "commit").unlink()
    screenshots.forget_other_commits("b")
    assert not run.exists()


def test_a_picture_keeps_the_colors_of_its_backgrounds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = np.full((300, 400, 3), (246, 245, 241), np.uint8)
    drawn[40:260, 40:360] = 255
    drawn[60:240, 60:340] = rng.integers(0, 256, (180, 280, 3))  # far more colors than a palette's
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    screenshots.save(file.getvalue(), tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.mode == "P"
        kept = np.asarray(picture.convert("RGB"))
    assert kept[5, 5].tolist() == [246, 245, 241]
    assert kept[45, 45].tolist() == [255, 255, 255]


def test_the_table_of_engines_reads_what_their_comparison_writes() -> None:
    program = (ROOT / "benchmarks" / "compare_engines.py").read_text()
    written = set(re.findall(r'one\["(\w+)"\] =', program))
    assert written
    for engine in load("engines")["engines"]:
        assert "refused" in engine or engine.keys() >= written
    assert "Largest influence of neighbors" in engines()


def test_the_table_of_strategies_shows_what_differs_from_ddp(tmp_path: Path) -> None:
    row = {
        "loss_difference": 6e-8, "weight_difference": 2.4e-7, "resumed": True, "skipped_steps": None,
        "moved": {"1": 0.0, "4": 3e-8}, "loaded": "BertForSequenceClassification",
    }  # fmt: skip
    other = {**row, "resumed": False, "skipped_steps": 7}
    result = {"steps": 16, "rows": {"zero2-offload-no": row, "fsdp-fp16": other}}
    (tmp_path / "strategy-matrix.json").write_text(json.dumps(result))
    values, model = "6e-08 | 2e-07", "BertForSequenceClassification"
    assert strategy_matrix(tmp_path).splitlines()[2:] == [
        f"| zero2-offload | fp32 | {values} | same bits | 0 | 3e-08 |  | {model} |",
        f"| fsdp | fp16 | {values} | **other bits** | 0 | 3e-08 | 7 of 16 | {model} |",
    ]


def test_a_soak_in_which_no_request_succeeded_is_no_result() -> None:
    assert median_ms(Outcome(statuses=Counter({200: 2}), latencies=[0.25, 0.75])) == 500.0
    with pytest.raises(SystemExit, match=r"no request succeeded, answers by status: \{0: 9\}"):
        median_ms(Outcome(statuses=Counter({0: 9})))


def test_the_table_of_the_quickstart_has_a_column_for_each_seed(tmp_path: Path) -> None:
    runs = [
        {"seed": seed, "accuracy": 0.9, "seconds": 2 * seconds + 1.0,
         "stages": {"tokenizing": 1.0, "training": seconds}}
        for seed, seconds in ((42, 100.0), (1, 90.0), (2, 130.0))
    ]  # fmt: skip
    result = {"median_seconds_by_stage": {"tokenizing": 1.0, "training": 100.0}, "runs": runs}
    (tmp_path / "quickstart.json").write_text(json.dumps(result))
    assert quickstart(tmp_path).splitlines() == [
        "| Stage, seconds | Median | seed 42 | seed 1 | seed 2 |",
        "| --- | --- | --- | --- | --- |",
        "| tokenizing | 1.0 | 1.0 | 1.0 | 1.0 |",
        "| training | 100.0 | 100.0 | 90.0 | 130.0 |",
        "| all | 201.0 | 201.0 | 181.0 | 261.0 |",
        "| validation accuracy |  | 0.9000 | 0.9000 | 0.9000 |",
    ]


def test_stages_of_the_quickstart_have_the_same_names_in_each_run() -> None:
    """Paths are those of temporary folders, and Ray starts twice."""
    output = json.loads((RESULTS / "transcripts.json").read_text())["commands"]["quickstart"]
    assert START in output["output"][0]
    stages = [START]
    for line in output["output"]:
        if line.startswith("· "):
            stages.append(stage_of(line, stages))
    assert stages == [
        "loading torch and Ray", "reading the data", "starting Ray", "tokenizing", "training",
        "serving the model", "starting Ray again", "starting Ray Serve",
    ]  # fmt: skip
