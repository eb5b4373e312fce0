"""The inputs of public bug reports, as the log has them: each has the outcome that is expected of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from bug_reports import LOG, WITH_MODEL, differences, run_case

CASES = json.loads(LOG.read_text())["cases"]


def name_of(case: dict[str, Any]) -> str:
    return f"{'/'.join(case['citation'].split('/')[3:])} {case['input']['report']}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_reported_input(case: dict[str, Any], tmp_path: Path) -> None:
    if case["input"]["do"] in WITH_MODEL:
        pytest.skip("benchmarks/bug_reports.py runs the cases with models")
    outcome = run_case(case, tmp_path)
    assert not differences(case["expected"], outcome), outcome


def test_an_outcome_is_held_against_what_is_expected() -> None:
    found = {"rows": [["a", "x"]], "said": ["warning: -1 is a label"]}
    assert not differences({"rows": [["a", "x"]], "said": r"-1 is"}, found)
    assert differences({"rows": [["a", "y"]], "said": r"-2 is"}, found) == ["rows", "said"]
    assert differences({"rows": []}, {"refused": "a sentence"}) == ["rows", "ended"]
    assert differences({"refused": "one"}, {"refused": "one\ntwo"}) == ["refused"]
    assert differences({"refused": "one"}, {"crashed": "TypeError: one"}) == ["refused", "ended"]


def test_the_log_is_complete() -> None:
    assert all({"happened", "fixed_by", "now"} <= set(case) for case in CASES)
    wrong_at_first = [c for c in CASES if differences(c["expected"], c["happened"])]
    assert all(case["fixed_by"] for case in wrong_at_first)
    assert not [c for c in CASES if differences(c["expected"], c["now"])]
