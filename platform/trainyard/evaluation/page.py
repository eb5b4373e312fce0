"""The evaluation as one HTML page for people: verdict first, tables and figures behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.metrics import get_metric
from trainyard.report.kit import (
    Cell,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    charts,
    commit,
    duration,
    number,
    render,
    text_cell,
)

Details = Mapping[str, Any]


def page(found: Details) -> str:
    """HTML of what evaluation.json holds."""
    sections = [_results(found)]
    for name, split in found["splits"].items():
        prefix = f"{name}: " if len(found["splits"]) > 1 else ""
        sections += [
            Section(f"{prefix}{title}", content)
            for title, content in (
                ("Classes", _classes(split)),
                ("Where it is weak", _slices(split)),
                ("Calibration", _calibration(split)),
                ("Worst errors", _worst(split)),
            )
            if content
        ]
    return render(
        f"Evaluation: {found['task']}",
        sections,
        subtitle=f"{found['model']}, {found['run']}, {commit(found['versions'])}",
    )


def _results(found: Details) -> Section:
    rows, dots = [], []
    for name, split in found["splits"].items():
        for metric, value in split["metrics"].items():
            low, high = split["intervals"][metric]
            rows.append([name, _title(metric), _with_interval(value, (low, high)), split["rows"]])
            dots.append(
                {"metric": f"{name}, {_title(metric)}", "value": value, "low": low, "high": high}
            )
    content: list[Any] = [
        Facts(
            [
                (_title(found["score_metric"]), number(found["score"])),
                ("time", duration(found["seconds"])),
            ],
            wide=True,
        )
    ]
    content += [
        Text(split["comparison"]["verdict"])
        for split in found["splits"].values()
        if "comparison" in split
    ]
    content += [
        Table(
            "Scores, with 95 % intervals over rows",
            ["split", "metric", "value", "rows"],
            rows,
        ),
        Figure(
            "Scores and their intervals",
            charts.dots(dots, "value", "metric", low="low", high="high"),
        ),
    ]
    content += [
        Text(
            f"{split['truncated_rows']} rows of {name} were cut to {found['max_length']} tokens.",
            "note",
        )
        for name, split in found["splits"].items()
        if split["truncated_rows"]
    ]
    if found["stored_temperature"]:
        content.append(
            Text(
                "Calibration below is of the logits as they are; serving and jobs/predict.py divide "
                f"them by {number(found['stored_temperature'])}, which is stored with the model.",
                "note",
            )
        )
    comparisons = [
        [
            name, _title(metric), _with_interval(c["difference"], c["interval"]), c["test"],
            c.get("p_value"), c["verdict"],
        ]
        for name, split in found["splits"].items()
        for metric, c in split.get("comparison", {}).get("metrics", {}).items()
    ]  # fmt: skip
    if comparisons:
        columns = ["split", "metric", "difference", "test", "p", "verdict"]
        content.append(Table(f"Against {found['against']}", columns, comparisons))
    return Section("Results", content)


def _title(metric: str) -> str:
    return get_metric(metric).title


def _with_interval(value: float, interval: Sequence[float] | None) -> Cell:
    note = f"{number(interval[0])} to {number(interval[1])}" if interval else ""
    return Cell(number(value), sort=value, note=note)


def _classes(split: Details) -> list[Any]:
    if not split["classes"]:
        return []
    rows = [
        [
            row["label"], row["rows"], row["predicted"],
            *(_with_interval(row[name], row[f"{name}_interval"])
              for name in ("precision", "recall", "f1")),
        ]
        for row in split["classes"]
    ]  # fmt: skip
    columns = ["class", "rows", "predicted", "precision", "recall", "F1"]
    content: list[Any] = [Table("Figures of each class", columns, rows)]
    if split["confusion"]:
        names = [row["label"] for row in split["classes"]]
        cells = [
            {"label": names[i], "prediction": names[j], "rows": count}
            for i, counts in enumerate(split["confusion"])
            for j, count in enumerate(counts)
        ]
        content.append(Figure("Confusion", charts.matrix(cells, "prediction", "label", "rows")))
    return content


def _slices(split: Details) -> list[Any]:
    rows = [
        [
            Cell(f"{row['slice']}: {row['value']}", status="failed" if row["weak"] else None),
            row["rows"],
            _with_interval(row["error"], row["error_interval"]),
            row["error_of_others"],
            row["p_value"],
            _with_interval(row["score"], row["score_interval"]) if "score" in row else None,
        ]
        for row in split["slices"]
    ]
    columns = ["slice", "rows", "error", "error of all others", "adjusted p", "score"]
    weak = sum(row["weak"] for row in split["slices"])
    verb = "have" if weak > 1 else "has"
    return [
        Text(
            f"{weak or 'None'} of {len(rows)} slices {verb} a larger error than all other rows, at a false "
            "discovery rate of 5 %."
        ),
        Table("Error by length, label and column", columns, rows),
    ]


CALIBRATION = {
    "ece": "expected calibration error",
    "log_loss": "log loss",
    "brier": "Brier score",
    "mean_confidence": "mean confidence",
    "accuracy": "accuracy",
}


def _calibration(split: Details) -> list[Any]:
    found = split.get("calibration")
    if not found:
        return []
    rows = [
        [words, found["before"][key], found["after"][key]] for key, words in CALIBRATION.items()
    ]
    diagram = [
        {"confidence": bin_["confidence"], "accuracy": bin_["accuracy"], "model": model}
        for model, bins in (
            ("as it is", found["reliability"]),
            ("with temperature", found["reliability_after"]),
        )
        for bin_ in bins
    ]
    diagram += [{"confidence": x, "accuracy": x, "model": "perfect"} for x in (0.0, 1.0)]
    limit = number(found["expected_if_calibrated"])
    return [
        Text(
            f"The model is {found['verdict']}: its expected calibration error is "
            f"{number(found['before']['ece'])}, and a perfectly calibrated one would show up to "
            f"{limit} on these rows."
        ),
        Table(
            f"Before and after temperature {number(found['temperature'])} (cross-fitted)",
            ["figure", "before", "after"],
            rows,
        ),
        Figure(
            "Reliability: accuracy by confidence",
            charts.lines(diagram, "confidence", "accuracy", "model", points=True),
            "On the diagonal a model is right as often as it says.",
        ),
    ]


def _worst(split: Details) -> list[Any]:
    rows = [
        [
            row["row"], text_cell(row), _words(row["label"]), _words(row["prediction"]), row["loss"],
        ]
        for row in split["worst"]
    ]  # fmt: skip
    columns = ["row", "text", "label", "prediction", "loss"]
    caption = "Wrong answers, the most confident first"
    return [Table(caption, columns, rows, empty="No row is wrong.")]


def _words(label: Any) -> str:
    if isinstance(label, list):
        return ", ".join(label)
    return number(label) if isinstance(label, float) else str(label)
