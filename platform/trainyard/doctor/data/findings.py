"""From figures to sentences: what the doctor says, the grave first."""

from collections.abc import Iterator, Mapping
from typing import Any

SMALL_EFFECT = 0.1
"""Cramér's V (Cohen 1988) and Kolmogorov-Smirnov distance from which a difference is named."""
TOLD_APART = 0.6
OFTEN = 0.01


def findings(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """{"severity": "grave" or "notice", "check", "sentence"} of all that is worth a look."""
    found = [
        {"severity": severity, "check": check, "sentence": sentence}
        for check, sentences in CHECKS.items()
        for severity, sentence in sentences(report)
    ]
    return sorted(found, key=lambda finding: finding["severity"] != "grave")


Sentences = Iterator[tuple[str, str]]


def _rows(report: Mapping[str, Any]) -> Sentences:
    for name, found in report["rows"].items():
        if not found["rows"]:
            yield "grave", f"{name} has no rows"
        if found["missing_labels"]:
            yield (
                "grave",
                f"{found['missing_labels']} of {found['rows']} rows of {name} have no label (-1); "
                "label or remove them: training and evaluation refuse the split",
            )


def _leaks(report: Mapping[str, Any]) -> Sentences:
    for pair in report["duplicates"]["between"]:
        where = f"of {pair['rows']} rows of {pair['second']}"
        if pair["normalized"]:
            yield (
                "grave",
                f"{pair['normalized']} {where} occur in {pair['first']} too ({pair['exact']} to the "
                "letter); remove them from one of the two",
            )
        if pair["near"]:
            yield "notice", f"{pair['near']} {where} have a near duplicate in {pair['first']}"


def _repeats(report: Mapping[str, Any]) -> Sentences:
    for name, split in report["duplicates"]["inside"].items():
        if split["normalized"]:
            yield (
                "notice",
                f"{split['normalized']} of {split['rows']} rows of {name} repeat an earlier one "
                f"({split['exact']} to the letter)",
            )
        if split["near"]:
            yield "notice", f"{split['near']} rows of {name} have a near duplicate in it"


def _contradictions(report: Mapping[str, Any]) -> Sentences:
    found = report["contradictions"]
    if found["texts"]:
        yield (
            "grave",
            f"{found['texts']} texts occur with different labels ({found['rows']} rows); at least "
            "one label of each is wrong or the task is ambiguous",
        )


def _texts(report: Mapping[str, Any]) -> Sentences:
    words = {
        "empty": ("grave", "have an empty text"),
        "same_text_twice": ("notice", "are a pair of the same text twice"),
        "control_characters": ("notice", "hold control characters or byte-order marks"),
        "undecodable": ("notice", "hold U+FFFD, the mark of text decoded wrongly"),
    }
    for name, faults in report["texts"].items():
        for fault, hits in faults.items():
            if hits["rows"]:
                severity, sentence = words[fault]
                yield severity, f"{hits['rows']} rows of {name} {sentence}"


def _truncation(report: Mapping[str, Any]) -> Sentences:
    for name, found in report["truncation"].items():
        if found["truncated_rows"]:
            share = found["truncated_rows"] / found["rows"]
            yield (
                "grave" if share > 10 * OFTEN else "notice",
                f"{found['truncated_rows']} rows of {name} ({100 * share:.2g} %) are cut to "
                f"{report['max_length']} tokens: {found['lost_tokens']} tokens are lost",
            )


def _balance(report: Mapping[str, Any]) -> Sentences:
    for name, counts in report["balance"].items():
        if "mean" in counts:
            continue
        # Not the sum of the counts: a row may have several labels.
        total = report["rows"][name]["rows"] - report["rows"][name]["missing_labels"]
        for label, rows in counts.items():
            if rows == 0:
                yield "grave", f"{name} has no row with the label {label}"
            elif rows < OFTEN * total:
                yield "notice", f"only {rows} of {total} rows of {name} have the label {label}"


def _drift(report: Mapping[str, Any]) -> Sentences:
    for pair in report["drift"]:
        first, second = pair["first"], pair["second"]
        named = {"labels": "labels", "lengths": "lengths of texts"}
        for key, words in named.items():
            test = pair.get(key)
            if test and test["effect"] >= SMALL_EFFECT and test["p_value"] < 0.01:
                yield (
                    "notice",
                    f"the {words} of {second} are distributed otherwise than those of {first} "
                    f"(effect {test['effect']:.2f})",
                )
        if (pair["told_apart"] or 0) > TOLD_APART:
            yield (
                "notice",
                f"a simple model tells rows of {second} from {first} (area under the curve "
                f"{pair['told_apart']:.2f}, where 0.5 is chance)",
            )


def _labels(report: Mapping[str, Any]) -> Sentences:
    found = report["labels"]
    if found.get("trustworthy") and found["estimated_wrong"]:
        yield (
            "notice",
            f"about {found['estimated_wrong']} of {found['rows']} labels of {found['split']} are not "
            "what a cross-validated model expects; the list starts with the least believed",
        )


CHECKS = {
    "rows": _rows,
    "leaks": _leaks,
    "contradictions": _contradictions,
    "texts": _texts,
    "truncation": _truncation,
    "balance": _balance,
    "drift": _drift,
    "repeats": _repeats,
    "labels": _labels,
}
