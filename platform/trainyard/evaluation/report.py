"""HTML report of an evaluation: the verdict first, then tables and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.evaluation.config import BUILT_IN_SLICES
from trainyard.metrics import metric_label
from trainyard.report import kit
from trainyard.report.kit import (
    Cell,
    Facts,
    Figure,
    Part,
    Section,
    Table,
    Text,
    commit,
    number,
    number_cell,
    render,
    text_cell,
)
from trainyard.summary import duration, span_words

Details = Mapping[str, Any]


def page(found: Details) -> str:
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
        f"Evaluation: {found['data_name']}",
        sections,
        subtitle=f"{found['model']}, {found['run']}, {commit(found['versions'])}",
    )


def _results(found: Details) -> Section:
    splits = found["splits"]
    rows, dots = [], []
    for name, split in splits.items():
        for metric, value in split["metrics"].items():
            low, high = split["intervals"][metric]
            title = _title(metric)
            rows.append([name, title, _with_interval(value, (low, high)), split["rows"]])
            row = title if len(splits) == 1 else f"{title}, {name}"
            dots.append({"metric": row, "value": value, "low": low, "high": high})
        rows.append([name, "Loss", _with_interval(split["eval_loss"], None), split["rows"]])
    facts: list[tuple[str, str]] = [
        (_title(found["score_metric"]), number(found["score"])),
        ("Rows", number(sum(split["rows"] for split in splits.values()))),
        ("Time", duration(found["seconds"])),
    ]
    figure = kit.charts.dots(dots, "value", "metric", low="low", high="high")
    content: list[Part] = [
        *(Text(_verdict(split["comparison"]["verdict"]), "headline")
          for split in splits.values() if "comparison" in split),
        Facts(facts, wide=True),
        *([Text(
            f"Rows with the same {found['group_column']} depend on each other: the intervals of scores "
            "and the comparison draw whole groups. Those of classes, slices and calibration take rows "
            "as independent.", "note",
        )] if found["group_column"] else []),
        Table("Scores, with 95 % intervals over rows", ["Split", "Metric", "Value", "Rows"], rows),
        Figure("Scores and their intervals", figure),
        *(Text(_truncated(name, split["truncated_rows"], found["max_length"]), "note")
          for name, split in splits.items() if split["truncated_rows"]),
    ]  # fmt: skip
    content += [
        Text(_sentence(note.removeprefix("note: ")) + ".", "note") for note in found["notes"]
    ]
    if found["stored_temperature"]:
        content.append(
            Text(
                "Calibration below is that of the raw logits. Serving and trainyard predict divide them "
                f"by {number(found['stored_temperature'])}, which is stored with the model.",
                "note",
            )
        )
    comparisons = [
        [
            name, _title(metric),
            _with_interval(c["difference"], c.get("corrected_interval", c["interval"])),
            _sentence(c["test"]), c.get("corrected_p_value", c.get("p_value")),
            _sentence(c["verdict"]),
        ]
        for name, split in splits.items()
        for metric, c in split.get("comparison", {}).get("metrics", {}).items()
    ]  # fmt: skip
    if comparisons:
        columns = ["Split", "Metric", "Difference", "Test", "p", "Verdict"]
        content.append(Table(f"Against {found['against']}", columns, comparisons))
    return Section("Results", content)


def _truncated(split: str, rows: int, tokens: int) -> str:
    were = f"row of {split} was" if rows == 1 else f"rows of {split} were"
    return f"{number(rows)} {were} truncated to {tokens} tokens."


def _sentence(text: str) -> str:
    """Capitalize the first letter, unless the first word is a path."""
    return text if "/" in text.split(" ")[0] else text[:1].upper() + text[1:]


def _verdict(text: str) -> str:
    """Capitalize a verdict on two models, unless it begins with the name of one."""
    return _sentence(text) if text.startswith("no verdict ") else text


def _title(metric: str) -> str:
    return _sentence(metric_label(metric))


def _with_interval(value: float, interval: Sequence[float] | None) -> Cell:
    return number_cell(value, note=span_words(interval, number) if interval else "")


def _classes(split: Details) -> list[Part]:
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
    columns = ["Class", "Rows", "Predicted", "Precision", "Recall", "F1"]
    content: list[Part] = [Table("Scores of each class", columns, rows)]
    if split["confusion"]:
        names = [row["label"] for row in split["classes"]]
        cells = [
            {"label": names[i], "prediction": names[j], "rows": count}
            for i, counts in enumerate(split["confusion"])
            for j, count in enumerate(counts)
        ]
        chart = kit.charts.matrix(cells, "prediction", "label", "rows")
        content.append(Figure("Confusion matrix, in rows", chart))
    return content


def _slices(split: Details) -> list[Part]:
    rows = [
        [
            Cell(
                f"{_slice(row['slice'])}: {row['value']}",
                status="failed" if row["weak"] else None,
            ),
            row["rows"],
            _with_interval(row["error"], row["error_interval"]),
            row["error_of_others"],
            row["p_value"],
            _with_interval(row["score"], row["score_interval"]) if "score" in row else None,
        ]
        for row in split["slices"]
    ]
    columns = ["Slice", "Rows", "Error", "Error of all others", "Adjusted p", "Score"]
    weak = sum(row["weak"] for row in split["slices"])
    verb = "have" if weak > 1 else "has"
    return [
        Text(
            f"{weak or 'None'} of {len(rows)} slices {verb} a larger error than all other rows, at a false "
            "discovery rate of 5 %."
        ),
        Table("Error by length, label and column", columns, rows),
    ]


def _slice(name: str) -> str:
    """Capitalize the name of a built-in slice; the name of a column stays."""
    return _sentence(name) if name in BUILT_IN_SLICES else name


CALIBRATION = {
    "ece": "Expected calibration error",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "mean_confidence": "Mean confidence",
    "accuracy": "Accuracy",
}


def _calibration(split: Details) -> list[Part]:
    found = split.get("calibration")
    if not found:
        return []
    rows = [
        [title, found["before"][key], found["after"][key]] for key, title in CALIBRATION.items()
    ]
    bins = {"Raw": found["reliability"], "With temperature": found["reliability_after"]}
    diagram: list[dict[str, Any]] = [
        {"confidence": bin_["confidence"], "accuracy": bin_["accuracy"], "rows": bin_["rows"],
         "model": model}
        for model, diagram in bins.items()
        for bin_ in diagram
    ]  # fmt: skip
    diagram += [{"confidence": x, "accuracy": x, "rows": 0, "model": "Perfect"} for x in (0.0, 1.0)]
    answers = [
        {"confidence": _span(bin_), "rows": round(share * bin_["rows"]), "answers": name}
        for bin_ in found["reliability"]
        for name, share in (("Right", bin_["accuracy"]), ("Wrong", 1 - bin_["accuracy"]))
    ]
    counts = [
        [_span(bin_), bin_["rows"], bin_["confidence"],
         _with_interval(bin_["accuracy"], bin_["interval"])]
        for bin_ in found["reliability"]
    ]  # fmt: skip
    verdict = f"The model is {found['verdict']}"
    if found["verdict"] is None:
        verdict = "There is no verdict, because these rows favor the model"
    by = f"{found['rows']} of {split['rows']}" if found["rows"] < split["rows"] else "these"
    chart = kit.charts.lines(diagram, "confidence", "accuracy", "model", size="rows", height=320)
    return [
        Text(
            f"{verdict}: its expected calibration error is {number(found['before']['ece'])}. A "
            "perfectly calibrated one would show up to "
            f"{number(found['expected_if_calibrated'])} on {by} rows."
        ),
        *([Text(f"Note: {found['selection']}.", "note")] if found["selection"] else []),
        Table(
            f"Before and after temperature {number(found['temperature'])} (cross-fitted)",
            ["Measure", "Before", "After"],
            rows,
        ),
        Figure(
            "Reliability: accuracy by confidence",
            chart,
            "A larger point stands for more rows. On the diagonal a model is right as often as its "
            "confidence says.",
        ),
        Table("Rows by confidence, raw", ["Confidence", "Rows", "Mean", "Accuracy"], counts),
        Figure(
            "Confidence of right and wrong answers, raw",
            kit.charts.bars(answers, "rows", "confidence", series="answers"),
            "Errors at high confidence are those that a threshold cannot catch.",
        ),
    ]


def _span(bin_: Mapping[str, Any]) -> str:
    return f"{number(bin_['from'], 2)} to {number(bin_['to'], 2)}"


def _worst(split: Details) -> list[Part]:
    rows = [
        [
            row["row"], text_cell(row), _label(row["label"]), _label(row["prediction"]), row["loss"],
        ]
        for row in split["worst"]
    ]  # fmt: skip
    columns = ["Row", "Text", "Label", "Prediction", "Loss"]
    return [Table("Errors, the most confident first", columns, rows, empty="No row is wrong.")]


def _label(label: Any) -> str:
    if isinstance(label, list):
        return ", ".join(label)
    return number(label) if isinstance(label, float) else str(label)
