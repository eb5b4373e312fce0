"""Findings of the data doctor: one sentence for each fault that the report's figures show."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

SMALL_EFFECT = 0.1
"""Minimum Cramér's V (Cohen 1988) or Kolmogorov-Smirnov distance of a reported difference."""
MAX_SEPARABILITY = 0.6
"""Area under the ROC curve above which splits are reported as different."""
RARE = 0.01
"""Share of rows below which a label is reported as rare."""
MUCH_TRUNCATION = 0.1
"""Share of truncated rows above which the finding is severe."""

Level = Literal["severe", "notice"]
Sentences = Iterator[tuple[Level, str]]


def findings(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the level, check and sentence of all findings, the severe ones first.

    `severity` is the level in the words of older releases; the next release drops it.
    """
    former: dict[Level, str] = {"severe": "grave", "notice": "notice"}
    result = [
        {"severity": former[level], "level": level, "check": check, "sentence": sentence}
        for check, sentences in CHECKS.items()
        for level, sentence in sentences(report)
    ]
    return sorted(result, key=lambda finding: finding["level"] != "severe")


def _rows(report: Mapping[str, Any]) -> Sentences:
    for name, found in report["rows"].items():
        if not found["rows"]:
            yield "severe", f"{name} has no rows"
        if found["missing_labels"]:
            yield (
                "severe",
                f"{found['missing_labels']} of {found['rows']} rows of {name} have no label (-1); "
                "label or remove them: training and evaluation refuse the split",
            )


def _leaks(report: Mapping[str, Any]) -> Sentences:
    for pair in report["duplicates"]["between"]:
        which = f"of {pair['rows']} rows of {pair['second']}"
        if pair["normalized"]:
            yield (
                "severe",
                f"{pair['normalized']} {which} also occur in {pair['first']} ({pair['exact']} "
                "identical); remove them from one of the two",
            )
        if pair["near"]:
            yield "notice", f"{pair['near']} {which} have a near duplicate in {pair['first']}"


def _repeats(report: Mapping[str, Any]) -> Sentences:
    for name, split in report["duplicates"]["inside"].items():
        if split["normalized"]:
            yield (
                "notice",
                f"{split['normalized']} of {split['rows']} rows of {name} repeat an earlier one "
                f"({split['exact']} identical)",
            )
        if split["near"]:
            yield (
                "notice",
                f"{split['near']} rows of {name} have a near duplicate in the same split",
            )


def _contradictions(report: Mapping[str, Any]) -> Sentences:
    found = report["contradictions"]
    if found["texts"]:
        yield (
            "severe",
            f"{found['texts']} texts occur with different labels ({found['rows']} rows); at least "
            "one label of each is wrong or the task is ambiguous",
        )


def _texts(report: Mapping[str, Any]) -> Sentences:
    sentence_of: dict[str, tuple[Level, str]] = {
        "empty": ("severe", "have an empty text"),
        "same_text_twice": ("notice", "are pairs of two equal texts"),
        "control_characters": ("notice", "contain control characters or byte-order marks"),
        "undecodable": ("notice", "contain U+FFFD, the mark of wrongly decoded text"),
    }
    for name, faults in report["texts"].items():
        for fault, hits in faults.items():
            if hits["rows"]:
                level, sentence = sentence_of[fault]
                yield level, f"{hits['rows']} rows of {name} {sentence}"


def _truncation(report: Mapping[str, Any]) -> Sentences:
    for name, found in report["truncation"].items():
        if found["truncated_rows"]:
            share = found["truncated_rows"] / found["rows"]
            yield (
                "severe" if share > MUCH_TRUNCATION else "notice",
                f"{found['truncated_rows']} rows of {name} ({100 * share:.2g} %) are truncated to "
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
                yield "severe", f"{name} has no row with the label {label}"
            elif rows < RARE * total:
                yield "notice", f"only {rows} of {total} rows of {name} have the label {label}"


def _drift(report: Mapping[str, Any]) -> Sentences:
    for pair in report["drift"]:
        first, second = pair["first"], pair["second"]
        named = {"labels": "labels", "lengths": "text lengths"}
        for key, words in named.items():
            test = pair.get(key)
            if test and test["effect"] >= SMALL_EFFECT and test["p_value"] < 0.01:
                yield (
                    "notice",
                    f"the distribution of {words} in {second} differs from {first} "
                    f"(effect {test['effect']:.2f})",
                )
        if (pair["told_apart"] or 0) > MAX_SEPARABILITY:
            yield (
                "notice",
                f"a linear model tells rows of {second} from rows of {first} (area under the ROC curve "
                f"{pair['told_apart']:.2f}; chance is 0.5)",
            )


def _labels(report: Mapping[str, Any]) -> Sentences:
    found = report["labels"]
    if found.get("trustworthy") and found["estimated_wrong"]:
        yield (
            "notice",
            f"about {found['estimated_wrong']} of {found['rows']} labels of {found['split']} differ "
            "from what a cross-validated model expects; the list starts with the most doubtful",
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
