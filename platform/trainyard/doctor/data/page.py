"""The examination as one HTML page: findings first, then the rows behind each."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.report.kit import (
    Cell,
    Figure,
    Section,
    Table,
    Text,
    charts,
    duration,
    number,
    render,
    text_cell,
)

Report = Mapping[str, Any]


def page(report: Report) -> str:
    """HTML of what doctor.json holds."""
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
    rows = [
        [
            Cell(f["severity"], status="failed" if f["severity"] == "grave" else None),
            f["check"],
            f["sentence"],
        ]
        for f in report["findings"]
    ]
    return Section(
        "Findings",
        [
            Table(
                "What was found, the grave first",
                ["severity", "check", "finding"],
                rows,
                "Nothing.",
            )
        ],
    )


def _duplicates(report: Report) -> Section:
    found = report["duplicates"]
    counts = [
        [where, split["rows"], split["exact"], split["normalized"], split["near"]]
        for where, split in (
            *((f"inside {name}", split) for name, split in found["inside"].items()),
            *((f"{pair['second']} in {pair['first']}", pair) for pair in found["between"]),
        )
    ]
    examples = [
        [
            f"{e['first']['split']} {e['first']['row']}", text_cell(e["first"]),
            f"{e['second']['split']} {e['second']['row']}", text_cell(e["second"]), e["similarity"],
        ]
        for e in (e for pair in (*found["between"], *found["inside"].values()) for e in pair["examples"])
    ]  # fmt: skip
    columns = ["where", "rows", "to the letter", "but for case and spacing", "near only"]
    return Section(
        "Duplicates",
        [
            Table("Rows that occur twice", columns, counts),
            Table(
                "Examples", ["row", "text", "row of the other", "its text", "similarity"], examples
            ),
        ],
    )


def _label(report: Report, label: Any) -> str:
    """By its name where it has one; several, and values, as they are."""
    names = report["label_names"]
    if isinstance(label, list):
        return ", ".join(name for name, on in zip(names, label, strict=True) if on) or "none"
    return number(label) if isinstance(label, float) else names[label]


def _contradictions(report: Report) -> Section:
    found = report["contradictions"]
    rows: list[Sequence[Any]] = [
        [
            i + 1,
            f"{member['split']} {member['row']}",
            _label(report, member["label"]),
            text_cell(member),
        ]
        for i, group in enumerate(found["examples"])
        for member in group
    ]
    return Section(
        "Contradicting labels",
        [
            Table(
                f"{found['texts']} texts with different labels",
                ["text no.", "row", "label", "text"],
                rows,
                "None.",
            )
        ],
    )


def _labels(report: Report) -> Section:
    found = report["labels"]
    if "skipped" in found:
        return Section("Suspicious labels", [Text(found["skipped"], "note")])
    kind = "explained_variance" if "explained_variance" in found else "accuracy"
    trust = "" if found["trustworthy"] else " It is too weak here for its doubts to mean much."
    rows = [
        [e["row"], _label(report, e["label"]), e["doubt"], text_cell(e)] for e in found["examples"]
    ]
    return Section(
        "Suspicious labels",
        [
            Text(
                f"A linear model of words, cross-validated on {found['split']} ({kind.replace('_', ' ')} "
                f"{number(found[kind])}), doubts about {found['estimated_wrong']} of {found['rows']} "
                f"labels. It suspects what is rare as well as what is wrong.{trust}"
            ),
            Table("Least believed labels", ["row", "label", "doubt", "text"], rows),
        ],
    )


def _lengths(report: Report) -> Section:
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
    columns = ["split", "rows", "median", "95 %", "99 %", "longest", "rows cut", "tokens lost"]
    return Section(
        "Lengths", [Table(f"Tokens per row, at most {report['max_length']}", columns, rows)]
    )


def _balance(report: Report) -> Section:
    content: list[Any] = []
    counted = {name: c for name, c in report["balance"].items() if "mean" not in c}
    if counted:
        shares = [
            {"label": label, "share": rows / max(sum(counts.values()), 1), "split": name}
            for name, counts in counted.items()
            for label, rows in counts.items()
        ]
        content.append(
            Figure("Share of each label", charts.bars(shares, "share", "label", series="split"))
        )
    elif report["balance"]:
        rows = [[name, *figures.values()] for name, figures in report["balance"].items()]
        content.append(Table("Targets", ["split", "mean", "sd", "lowest", "highest"], rows))
    rows = [
        [
            f"{pair['second']} from {pair['first']}", (pair.get("labels") or {}).get("effect"),
            pair["lengths"]["effect"], pair["unseen_words"], pair["told_apart"],
        ]
        for pair in report["drift"]
    ]  # fmt: skip
    columns = [
        "drift of",
        "labels (effect)",
        "lengths (effect)",
        "unseen words (share)",
        "told apart (AUC)",
    ]
    return Section("Balance and drift", [*content, Table("Drift between splits", columns, rows)])


def _texts(report: Report) -> Section:
    rows: list[Sequence[Any]] = [
        [fault, f"{name} {example['row']}", text_cell(example)]
        for name, faults in report["texts"].items()
        for fault, hits in faults.items()
        for example in hits["examples"]
    ]
    return Section(
        "Faulty texts", [Table("Rows", ["fault", "row", "text"], rows, "None.")], folded=True
    )
