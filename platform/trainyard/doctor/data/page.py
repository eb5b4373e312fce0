"""HTML page of the report: a summary, the findings, then the rows of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.report import kit
from trainyard.report.kit import (
    Cell,
    Facts,
    Figure,
    Part,
    Section,
    Table,
    Text,
    duration,
    number,
    render,
    text_cell,
)

Report = Mapping[str, Any]

FIXES = {
    "rows": "Label or remove the rows without a label; fill an empty split or leave it out.",
    "leaks": "Remove these rows from the training split; keep those that are evaluated.",
    "contradictions": "Correct the labels listed below, or remove every row of such a text.",
    "texts": "Remove empty rows. Read the source again in its true encoding.",
    "truncation": "Raise --max-length, or shorten the texts.",
    "balance": "Add rows of the rare labels, or merge labels. Accuracy hides errors on them.",
    "drift": "Split at random, unless the splits differ on purpose, as over time.",
    "repeats": "Remove the repeats: each counts again in training.",
    "labels": "Read the rows listed below from the top, and correct the wrong labels.",
}
"""Remedy for the findings of each check."""


def page(report: Report) -> str:
    """Render the content of doctor.json as HTML."""
    return render(
        f"Data doctor: {report['task']}",
        [
            _findings(report),
            _duplicates(report),
            _contradictions(report),
            _labels(report),
            _lengths(report),
            _balance(report),
            _texts(report),
        ],
        subtitle=f"{report['run']}, examined in {duration(report['seconds'])}",
    )


def _findings(report: Report) -> Section:
    severe = sum(finding["level"] == "severe" for finding in report["findings"])
    notices = len(report["findings"]) - severe
    rows = [
        [
            Cell(f["level"].capitalize(), status="failed" if f["level"] == "severe" else None),
            f["check"].capitalize(),
            f["sentence"][:1].upper() + f["sentence"][1:],
            FIXES.get(f["check"]),
        ]
        for f in report["findings"]
    ]  # fmt: skip
    sizes = [(f"Rows of {name}", number(counts["rows"])) for name, counts in report["rows"].items()]
    content: list[Part] = [
        Text(f"{_count(severe, 'severe finding')} and {_count(notices, 'notice')}.", "headline"),
        Facts(sizes, wide=True),
    ]
    if rows:
        columns = ["Severity", "Check", "Finding", "Fix"]
        content.append(Table("Findings, the severe ones first", columns, rows))
    return Section("Summary", content)


def _count(number_of: int, noun: str) -> str:
    return f"{number_of or 'No'} {noun}{'' if number_of == 1 else 's'}"


def _duplicates(report: Report) -> Section:
    duplicates = report["duplicates"]
    counts = [
        [where, split["rows"], split["exact"], split["normalized"], split["near"]]
        for where, split in (
            *((f"Inside {name}", split) for name, split in duplicates["inside"].items()),
            *((f"{pair['second']} in {pair['first']}", pair) for pair in duplicates["between"]),
        )
    ]
    examples = [
        [
            f"{e['first']['split']} {e['first']['row']}", text_cell(e["first"]),
            f"{e['second']['split']} {e['second']['row']}", text_cell(e["second"]), e["similarity"],
        ]
        for splits in (*duplicates["between"], *duplicates["inside"].values())
        for e in splits["examples"]
    ]  # fmt: skip
    columns = ["Where", "Rows", "Identical", "Same but for case and spacing", "Near only"]
    return Section(
        "Duplicates",
        [
            Table("Rows that occur twice", columns, counts),
            Table(
                "Examples",
                ["Row", "Text", "Other row", "Its text", "Similarity"],
                examples,
                "None.",
            ),
        ],
    )


def _label(report: Report, label: Any) -> str:
    """Name of the class, names of several labels, or the target of a regression."""
    names = report["label_names"]
    if isinstance(label, list):
        return ", ".join(name for name, on in zip(names, label, strict=True) if on) or "none"
    return number(label) if isinstance(label, float) else names[label]


def _contradictions(report: Report) -> Section:
    contradictions = report["contradictions"]
    rows: list[Sequence[Any]] = [
        [
            i + 1,
            f"{member['split']} {member['row']}",
            _label(report, member["label"]),
            text_cell(member),
        ]
        for i, group in enumerate(contradictions["examples"])
        for member in group
    ]
    return Section(
        "Contradicting labels",
        [
            Table(
                f"{number(contradictions['texts'])} texts with different labels",
                ["Text no.", "Row", "Label", "Text"],
                rows,
                "None.",
            )
        ],
    )


def _labels(report: Report) -> Section:
    labels = report["labels"]
    if "skipped" in labels:
        return Section("Suspicious labels", [Text(labels["skipped"], "note")])
    kind = "explained_variance" if "explained_variance" in labels else "accuracy"
    trust = "" if labels["trustworthy"] else " It is too weak here to rely on."
    rows = [
        [e["row"], _label(report, e["label"]), e["doubt"], text_cell(e)] for e in labels["examples"]
    ]
    return Section(
        "Suspicious labels",
        [
            Text(
                f"A linear model of words, cross-validated on {labels['split']} ({kind.replace('_', ' ')} "
                f"{number(labels[kind])}), doubts about {number(labels['estimated_wrong'])} of "
                f"{number(labels['rows'])} labels. It doubts rare texts as well as wrong labels.{trust}"
            ),
            Table("Labels, the most doubtful first", ["Row", "Label", "Doubt", "Text"], rows),
        ],
    )


def _lengths(report: Report) -> Section:
    rows = [
        [
            name,
            figures["rows"],
            *figures["tokens"].values(),
            figures["truncated_rows"],
            figures["lost_tokens"],
        ]
        for name, figures in report["truncation"].items()
    ]
    columns = [
        "Split",
        "Rows",
        "Median",
        "95%",
        "99%",
        "Longest",
        "Rows truncated",
        "Tokens lost",
    ]
    return Section(
        "Lengths", [Table(f"Tokens per row, at most {report['max_length']}", columns, rows)]
    )


def _balance(report: Report) -> Section:
    content: list[Part] = []
    counted = {name: c for name, c in report["balance"].items() if "mean" not in c}
    if counted:
        shares = [
            {"label": label, "share": rows / max(sum(counts.values()), 1), "split": name}
            for name, counts in counted.items()
            for label, rows in counts.items()
        ]
        content.append(
            Figure("Share of each label", kit.charts.bars(shares, "share", "label", series="split"))
        )
    elif report["balance"]:
        rows = [[name, *figures.values()] for name, figures in report["balance"].items()]
        content.append(Table("Targets", ["Split", "Mean", "SD", "Lowest", "Highest"], rows))
    rows = [
        [
            f"{pair['second']} from {pair['first']}", (pair.get("labels") or {}).get("effect"),
            pair["lengths"]["effect"], pair["unseen_words"], pair["told_apart"],
        ]
        for pair in report["drift"]
    ]  # fmt: skip
    columns = ["Drift of", "Labels (effect)", "Lengths (effect)", "Unseen words (share)",
               "Separability (AUC)"]  # fmt: skip
    return Section("Balance and drift", [*content, Table("Drift between splits", columns, rows)])


def _texts(report: Report) -> Section:
    rows: list[Sequence[Any]] = [
        [fault.replace("_", " ").capitalize(), f"{name} {example['row']}", text_cell(example)]
        for name, faults in report["texts"].items()
        for fault, hits in faults.items()
        for example in hits["examples"]
    ]
    return Section(
        "Faulty texts", [Table("Rows", ["Fault", "Row", "Text"], rows, "None.")], folded=True
    )
