"""Findings of the data doctor as sentences, and the HTML report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from trainyard.report import kit
from trainyard.report.kit import (  # fmt: skip
    Cell,
    Facts,
    Figure,
    Part,
    Section,
    Table,
    Text,
    Value,
    number,
    text_cell,
)
from trainyard.summary import duration

SMALL_EFFECT = 0.1
"""Minimum Cramér's V (Cohen 1988) or Kolmogorov-Smirnov distance of a reported difference."""
MAX_SEPARABILITY = 0.6
"""Area under the ROC curve above which splits are reported as different."""
RARE = 0.01
"""Share of rows below which a label is reported as rare."""
MUCH_TRUNCATION = 0.1
"""Share of truncated rows above which the finding is severe."""

Report = Mapping[str, Any]
Level = Literal["severe", "notice"]
Sentences = Iterator[tuple[Level, str]]


class Check(NamedTuple):
    """Check for one kind of fault: the function that yields its sentences, and the remedy."""

    sentences: Callable[[Report], Sentences]
    fix: str


def findings(report: Report) -> list[dict[str, str]]:
    """Return the level, check and sentence of all findings, severe findings first.

    The key `severity` repeats the level in the words of older releases; the next release drops the
    key.
    """
    former: dict[Level, str] = {"severe": "grave", "notice": "notice"}
    result = [
        {"severity": former[level], "level": level, "check": name, "sentence": sentence}
        for name, check in CHECKS.items()
        for level, sentence in check.sentences(report)
    ]
    return sorted(result, key=lambda finding: finding["level"] != "severe")


def _count(number_of: int, noun: str, zero: str = "0") -> str:
    return f"{number_of or zero} {noun}{'' if number_of == 1 else 's'}"


def _verb(number_of: int, plural: str) -> str:
    """Return a verb for `number_of` things."""
    if number_of != 1:
        return plural
    return {"have": "has", "are": "is"}.get(plural, f"{plural}s")


def _rows(report: Report) -> Sentences:
    for name, found in report["rows"].items():
        if not found["rows"]:
            yield "severe", f"{name} has no rows"
        if missing := found["missing_labels"]:
            sentence = (
                f"{missing} of {found['rows']} rows of {name} {_verb(missing, 'have')} no label"
            )
            remedy = f"label or remove {'it' if missing == 1 else 'them'}"
            yield "severe", f"{sentence} (-1); {remedy}: training and evaluation refuse the split"


def _leaks(report: Report) -> Sentences:
    for pair in report["duplicates"]["between"]:
        which, first = f"of {pair['rows']} rows of {pair['second']}", pair["first"]
        if pair["normalized"]:
            copies, verb = pair["normalized"], _verb(pair["normalized"], "occur")
            sentence = f"{copies} {which} also {verb} in {first} ({pair['exact']} identical)"
            remedy = f"remove {'it' if copies == 1 else 'them'} from one of the two"
            yield "severe", f"{sentence}; {remedy}"
        if pair["near"]:
            verb = _verb(pair["near"], "have")
            yield "notice", f"{pair['near']} {which} {verb} a near duplicate in {first}"


def _repeats(report: Report) -> Sentences:
    for name, split in report["duplicates"]["inside"].items():
        if split["normalized"]:
            of_all = f"{split['normalized']} of {split['rows']} rows of {name}"
            repeats = f"{of_all} {_verb(split['normalized'], 'repeat')} an earlier one"
            yield "notice", f"{repeats} ({split['exact']} identical)"
        if split["near"]:
            has = f"{_count(split['near'], 'row')} of {name} {_verb(split['near'], 'have')}"
            yield "notice", f"{has} a near duplicate in the same split"


def _contradictions(report: Report) -> Sentences:
    found = report["contradictions"]
    if found["texts"]:
        occur = f"{_count(found['texts'], 'text')} {_verb(found['texts'], 'occur')}"
        texts = f"{occur} with different labels ({_count(found['rows'], 'row')})"
        each = "its labels" if found["texts"] == 1 else "the labels of each"
        yield "severe", f"{texts}; at least one of {each} is wrong or the task is ambiguous"


_TEXT_FAULTS: dict[str, tuple[Level, str, str]] = {
    "empty": ("severe", "have", "an empty text"),
    "same_text_twice": ("notice", "have", "two equal texts as a pair"),
    "control_characters": ("notice", "contain", "control characters or byte-order marks"),
    "undecodable": ("notice", "contain", "U+FFFD, the mark of wrongly decoded text"),
}
"""Fault -> level, and verb and object of its sentence."""


def _texts(report: Report) -> Sentences:
    for name, faults in report["texts"].items():
        for fault, hits in faults.items():
            if hits["rows"]:
                level, verb, words = _TEXT_FAULTS[fault]
                rows = _count(hits["rows"], "row")
                yield level, f"{rows} of {name} {_verb(hits['rows'], verb)} {words}"


def _truncation(report: Report) -> Sentences:
    for name, found in report["truncation"].items():
        if rows := found["truncated_rows"]:
            share = rows / found["rows"]
            level: Level = "severe" if share > MUCH_TRUNCATION else "notice"
            cut = f"{_count(rows, 'row')} of {name} ({100 * share:.3g} %) {_verb(rows, 'are')} truncated"
            tokens = found["lost_tokens"]
            lost = f"{_count(tokens, 'token')} {_verb(tokens, 'are')} lost"
            yield level, f"{cut} to {report['max_length']} tokens: {lost}"


def _balance(report: Report) -> Sentences:
    for name, counts in report["balance"].items():
        if "mean" in counts:
            continue
        # Not the sum of the counts: a row may have several labels.
        total = report["rows"][name]["rows"] - report["rows"][name]["missing_labels"]
        for label, rows in counts.items():
            if rows == 0:
                yield "severe", f"{name} has no row with the label {label}"
            elif rows < RARE * total:
                verb = _verb(rows, "have")
                yield "notice", f"only {rows} of {total} rows of {name} {verb} the label {label}"


def _drift(report: Report) -> Sentences:
    for pair in report["drift"]:
        first, second = pair["first"], pair["second"]
        for key, words in (("labels", "labels"), ("lengths", "text lengths")):
            test = pair.get(key)
            if test and test["effect"] >= SMALL_EFFECT and test["p_value"] < 0.01:
                differs = f"the distribution of {words} in {second} differs from {first}"
                yield "notice", f"{differs} (effect {test['effect']:.2f})"
        if (pair["told_apart"] or 0) > MAX_SEPARABILITY:
            separates = f"a linear model tells rows of {second} from rows of {first}"
            area = f"area under the ROC curve {pair['told_apart']:.2f}; chance is 0.5"
            yield "notice", f"{separates} ({area})"


def _labels(report: Report) -> Sentences:
    found = report["labels"]
    if found.get("trustworthy") and found["estimated_wrong"]:
        wrong = f"about {found['estimated_wrong']} of {found['rows']} labels of {found['split']}"
        differ = (
            f"{_verb(found['estimated_wrong'], 'differ')} from what a cross-validated model expects"
        )
        yield "notice", f"{wrong} {differ}; the list starts with the most doubtful"


CHECKS = {
    "rows": Check(
        _rows, "Label or remove the rows without a label; fill an empty split or leave it out."
    ),
    "leaks": Check(
        _leaks,
        "Remove these rows from the training split; keep those that are evaluated. The cleaned file "
        "leaves out copies only: read the near duplicates below, and decide.",
    ),
    "contradictions": Check(
        _contradictions, "Correct the labels listed below, or remove every row of such a text."
    ),
    "texts": Check(_texts, "Remove empty rows. Read the source again in its true encoding."),
    "truncation": Check(_truncation, "Raise --max-length, or shorten the texts."),
    "balance": Check(
        _balance, "Add rows of the rare labels, or merge labels. Accuracy hides errors on them."
    ),
    "drift": Check(_drift, "Split at random, unless the splits differ on purpose, as over time."),
    "repeats": Check(
        _repeats,
        "Remove the repeats: each counts again in training. The cleaned file leaves out copies only: "
        "read the near duplicates below, and decide.",
    ),
    "labels": Check(
        _labels, "Read the rows listed below from the top, and correct the wrong labels."
    ),
}


def page(report: Report) -> str:
    sections: dict[str, list[Part]] = {
        "Summary": _summary(report),
        "Duplicates": _shown_duplicates(report),
        "Contradicting labels": [_shown_contradictions(report)],
        "Suspicious labels": _shown_labels(report),
        "Lengths": [_shown_lengths(report)],
        "Balance and drift": _shown_balance(report),
        "Faulty texts": [_shown_texts(report)],
    }
    return kit.render(
        f"Data doctor: {report['data_name']}",
        [
            Section(title, content, folded=title == "Faulty texts")
            for title, content in sections.items()
        ],
        subtitle=f"{report['run']}, examined in {duration(report['seconds'])}",
    )


def _summary(report: Report) -> list[Part]:
    severe = sum(finding["level"] == "severe" for finding in report["findings"])
    notices = len(report["findings"]) - severe
    severities = f"{_count(severe, 'severe finding', 'No')} and {_count(notices, 'notice', 'no')}"
    rows = [
        [
            Cell(f["level"].capitalize(), status="failed" if f["level"] == "severe" else None),
            f["check"].capitalize(),
            f["sentence"][:1].upper() + f["sentence"][1:],
            CHECKS[f["check"]].fix,
        ]
        for f in report["findings"]
    ]
    sizes = [(f"Rows of {name}", number(counts["rows"])) for name, counts in report["rows"].items()]
    content: list[Part] = [
        Text(f"{severities}.", "headline"),
        Facts(sizes, wide=True),
    ]
    if rows:
        columns = ["Severity", "Check", "Finding", "Fix"]
        content.append(Table("Findings, the severe ones first", columns, rows))
    if cleaned := report.get("cleaned"):
        reasons = ", ".join(f"{number(n)} {why}" for why, n in cleaned["removed"].items() if n)
        content += [
            Text(
                f"{cleaned['file']} has the {number(cleaned['rows'])} rows of {cleaned['split']} "
                f"without severe faults or repeats. Left out: {reasons}. Train on it by"
            ),
            Text(cleaned["command"], "command"),
        ]
    return content


def _shown_duplicates(report: Report) -> list[Part]:
    inside, between = report["duplicates"]["inside"], report["duplicates"]["between"]
    counts = [
        [where, split["rows"], split["exact"], split["normalized"], split["near"]]
        for where, split in (
            *((f"within {name}", split) for name, split in inside.items()),
            *((f"{pair['second']} in {pair['first']}", pair) for pair in between),
        )
    ]
    examples = [
        [_place(e["first"]), text_cell(e["first"]), _place(e["second"]), text_cell(e["second"]),
         e["similarity"]]
        for splits in (*between, *inside.values())
        for e in splits["examples"]
    ]  # fmt: skip
    columns = ["Where", "Rows", "Identical", "Same but for case and spacing", "Near only"]
    heads = ["Row", "Text", "Other row", "Its text", "Similarity"]
    return [
        Table("Rows that occur twice", columns, counts),
        Table("Examples", heads, examples, "None."),
    ]


def _place(example: Mapping[str, Any]) -> str:
    return f"{example['split']} {example['row']}"


def _label(report: Report, label: Any) -> str:
    names = report["label_names"]
    if isinstance(label, list):
        return ", ".join(name for name, on in zip(names, label, strict=True) if on) or "none"
    return number(label) if isinstance(label, float) else names[label]


def _shown_contradictions(report: Report) -> Table:
    found = report["contradictions"]
    rows: list[list[Cell | Value]] = [
        [i + 1, _place(member), _label(report, member["label"]), text_cell(member)]
        for i, group in enumerate(found["examples"])
        for member in group
    ]
    caption = f"{_count(found['texts'], 'text')} with different labels"
    return Table(caption, ["Text no.", "Row", "Label", "Text"], rows, "None.")


def _shown_labels(report: Report) -> list[Part]:
    labels = report["labels"]
    if "skipped" in labels:
        return [Text(f"{labels['skipped'][:1].upper()}{labels['skipped'][1:]}.", "note")]
    kind = "explained_variance" if "explained_variance" in labels else "accuracy"
    trust = "" if labels["trustworthy"] else " It is too weak here to rely on."
    rows = [
        [e["row"], _label(report, e["label"]), e["doubt"], text_cell(e)] for e in labels["examples"]
    ]
    summary = (
        f"A linear model of words, cross-validated on {labels['split']} ({kind.replace('_', ' ')} "
        f"{number(labels[kind])}), doubts about {number(labels['estimated_wrong'])} of "
        f"{number(labels['rows'])} labels. It doubts rare texts as well as wrong labels.{trust}"
    )
    columns = ["Row", "Label", "Doubt", "Text"]
    return [Text(summary), Table("Labels, the most doubtful first", columns, rows)]


def _shown_lengths(report: Report) -> Table:
    columns = [
        "Split", "Rows", "Median", "95 %", "99 %", "Longest", "Rows truncated", "Tokens lost",
    ]  # fmt: skip
    rows = [
        [
            name,
            found["rows"],
            *found["tokens"].values(),
            found["truncated_rows"],
            found["lost_tokens"],
        ]
        for name, found in report["truncation"].items()
    ]
    return Table(f"Tokens per row, at most {report['max_length']}", columns, rows)


def _shown_balance(report: Report) -> list[Part]:
    content: list[Part] = []
    counted = {name: c for name, c in report["balance"].items() if "mean" not in c}
    if counted:
        shares = [
            {"label": label, "share": rows / max(sum(counts.values()), 1), "split": name}
            for name, counts in counted.items()
            for label, rows in counts.items()
        ]
        chart = kit.charts.bars(shares, "share", "label", series="split")
        content.append(Figure("Share of each label", chart))
    elif report["balance"]:
        rows = [[name, *figures.values()] for name, figures in report["balance"].items()]
        content.append(Table("Targets", ["Split", "Mean", "SD", "Lowest", "Highest"], rows))
    drifts = [
        [f"{pair['second']} from {pair['first']}", (pair.get("labels") or {}).get("effect"),
         pair["lengths"]["effect"], pair["unseen_words"], pair["told_apart"]]
        for pair in report["drift"]
    ]  # fmt: skip
    columns = ["Drift of", "Labels (effect)", "Lengths (effect)", "Unseen words (share)",
               "Separability (AUC)"]  # fmt: skip
    return [*content, Table("Drift between splits", columns, drifts)]


def _shown_texts(report: Report) -> Table:
    rows: list[Sequence[Cell | Value]] = [
        [fault.replace("_", " ").capitalize(), f"{name} {example['row']}", text_cell(example)]
        for name, faults in report["texts"].items()
        for fault, hits in faults.items()
        for example in hits["examples"]
    ]
    return Table("Rows", ["Fault", "Row", "Text"], rows, "None.")
