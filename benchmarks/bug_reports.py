"""Run the inputs of public bug reports against this code, and log the outcomes.

    python benchmarks/bug_reports.py [--only TEXT]

Each case of results/bug-reports.json holds a citation, the kind of fault, the input and the
expected outcome. Runs add the first outcome (`happened`) and the last one (`now`); `fixed_by` is
the test of the fix. A new case is an entry without outcomes. The process exits with status 1 if an
outcome differs from the expected one. `tests/data/test_bug_reports.py` runs the cases that need no
model.
"""

import argparse
import base64
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from provenance import provenance

from trainyard.config import TrainConfig
from trainyard.data.held_out import normalize_text
from trainyard.data.splits import Split, find_splits
from trainyard.errors import UserError
from trainyard.tasks import Task

ROOT = Path(__file__).parents[1]
LOG = ROOT / "benchmarks/results/bug-reports.json"
Outcome = dict[str, Any]

TYPES: dict[str, Any] = {
    "decimal": pa.decimal128(8, 2),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "int8": pa.int8(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "list": pa.list_(pa.string()),
    "large_list": pa.large_list(pa.string()),
    "list_of_int": pa.list_(pa.int64()),
    "fixed_list": pa.list_(pa.int64(), 2),
    "struct": pa.struct({"value": pa.string()}),
    "map": pa.map_(pa.string(), pa.string()),
    "dictionary_of_int": pa.dictionary(pa.int32(), pa.int64()),
    "null": pa.null(),
}
"""Arrow types by their names in the log."""
CASTS: dict[str, Callable[[Any], Any]] = {
    "decimal": Decimal,
    "date": date.fromisoformat,
    "binary": str.encode,
    "map": lambda pairs: [tuple(pair) for pair in pairs],
}
"""Conversions from JSON values, for types that JSON lacks."""


def write_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file as its entry describes it: text, bytes, or the columns of a Parquet file."""
    if "columns" in content:
        _write_parquet(path, content)
        return
    if "base64" in content:
        path.write_bytes(base64.b64decode(content["base64"]))
        return
    text: str = content["text"]
    for name, (part, times) in content.get("fill", {}).items():
        text = text.replace("{" + name + "}", part * times)
    path.write_bytes(text.encode(content.get("encoding", "utf-8")))


def _write_parquet(path: Path, content: Mapping[str, Any]) -> None:
    if "class_names" in content:
        features = {name: datasets.Value("string") for name in content["columns"]}
        for name, names in content["class_names"].items():
            label = datasets.ClassLabel(names=names)
            listed = isinstance(content["columns"][name][0], list)
            features[name] = datasets.List(label) if listed else label
        rows = datasets.Dataset.from_dict(content["columns"], features=datasets.Features(features))
        rows.to_parquet(str(path))
        return
    columns = {}
    for name, values in content["columns"].items():
        kind = content.get("types", {}).get(name)
        cast = CASTS.get(kind, lambda value: value)
        made = [None if value is None else cast(value) for value in values]
        columns[name] = pa.array(made, TYPES[kind] if kind else None)
    pq.write_table(pa.table(columns), path)


def config_of(case: Mapping[str, Any], folder: Path, **more: Any) -> TrainConfig:
    """Return the config of a case; --train-file is its first file."""
    flags = {**case["input"].get("flags", {}), **more}
    for name in ("drop_labels",):
        if name in flags:
            flags[name] = tuple(flags[name])
    files = list(case["input"]["files"])
    return TrainConfig(train_file=str(folder / files[0]), **flags)


def read(case: Mapping[str, Any], folder: Path) -> Outcome:
    """Read the first file as training data and the last one, maybe the same, as validation data."""
    files = list(case["input"]["files"])
    found = find_splits(config_of(case, folder, validation_file=str(folder / files[-1])))
    return {
        "labels": list(found.task.labels),
        "rows": _rows(found.splits[0], found.task),
        "validation": sum(batch.num_rows for batch in found.splits[1].batches()),
        "said": list(found.notes),
    }


def held_out(case: Mapping[str, Any], folder: Path) -> Outcome:
    """Hold out validation rows of the first file; count rows, shared texts and lost classes."""
    found = find_splits(config_of(case, folder))
    train, validation = (_rows(split, found.task) for split in found.splits)
    texts = [{normalize_text(row[0]) for row in rows} for rows in (train, validation)]
    classes = {str(row[-1]) for row in train + validation}
    return {
        "train": len(train),
        "validation": len(validation),
        "shared_texts": len(texts[0] & texts[1]),
        "classes_without_training_rows": len(classes - {str(row[-1]) for row in train}),
        "said": list(found.notes),
    }


def _rows(split: Split, task: Task) -> list[list[Any]]:
    rows = []
    for batch in split.batches():
        columns = [
            batch[name].to_pylist() for name in ("text", "text_pair") if name in batch.schema.names
        ]
        for *texts, label in zip(*columns, batch["label"].to_pylist(), strict=True):
            if isinstance(label, list):
                label = [name for name, hot in zip(task.labels, label, strict=True) if hot]
            elif task.labels:
                label = task.labels[label]
            rows.append([*texts, label])
    return rows


def train(case: Mapping[str, Any], folder: Path) -> Outcome:
    """Train two steps from a tiny model of the architecture, as Ray's workers do."""
    from support.runs_locally import run_locally

    model = _model(case, folder)
    name = case["input"].get("model_path", str(model))
    os.chdir(folder)
    flags = {
        "model_name_or_path": name, "max_length": 64, "max_steps": 2, "train_batch_size": 8,
        "per_device_train_batch_size": 4, "storage_path": str(folder / "runs"), "run_name": "run",
    }  # fmt: skip
    flags |= case["input"].get("flags", {})
    outcome, run = run_locally(replace(config_of(case, folder), **flags))
    if outcome.error is not None:
        raise outcome.error
    return {
        "status": outcome.status,
        "steps": outcome.state.step,
        "said": [outcome.padding_note or ""],
        "labels": list(_exported(run, outcome, case, folder).labels),
    }


def _exported(run: Any, outcome: Any, case: Mapping[str, Any], folder: Path) -> Any:
    from trainyard.inference.registry import PREDICTORS
    from trainyard.models.build import build_tokenizer
    from trainyard.training.driver.export import export_model

    flags = case["input"].get("flags", {})
    config = replace(
        config_of(case, folder), **{"model_name_or_path": str(folder / "model"), **flags}
    )
    labels = find_splits(config_of(case, folder)).task.labels
    checkpoint = run.checkpoints / f"step-{outcome.state.best_step:08d}"
    export_model(run, checkpoint, build_tokenizer(config), "card", {}, config.max_length, labels)
    return PREDICTORS["text-classification"].load(str(run.model))


def answer(case: Mapping[str, Any], folder: Path) -> Outcome:
    """Classify texts alone and in one batch; report whether the outputs agree to 1e-5."""
    from trainyard.inference.registry import PREDICTORS

    predictor = PREDICTORS["text-classification"].load(str(_model(case, folder)))
    rows = predictor.preprocess(case["input"]["texts"]).rows
    alone = np.stack([predictor.forward([row])[0] for row in rows])
    together = np.stack(predictor.forward_all(rows))
    return {
        "independent_of_neighbors": bool(np.abs(alone - together).max() <= 1e-5),
        "said": [predictor.padding.note or ""],
    }


def predict(case: Mapping[str, Any], folder: Path) -> Outcome:
    """Predict the first file with a tiny classifier; report rows, labels and errors."""
    from trainyard.inference.batch.config import PredictConfig
    from trainyard.inference.batch.run import predict as predict_file

    config = PredictConfig(
        model_name_or_path=str(_model(case, folder)),
        input_file=str(folder / next(iter(case["input"]["files"]))),
        output_file=str(folder / "out.jsonl"),
        **case["input"].get("flags", {}),
    )
    predict_file(config)
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    return {
        "predicted": [line["text"] for line in lines if "error" not in line],
        "said": [line["error"] for line in lines if "error" in line],
    }


def _model(case: Mapping[str, Any], folder: Path) -> Path:
    from support.architectures import architecture

    path = architecture(folder / "model", case["input"]["model"])
    for name, changes in case["input"].get("model_files", {}).items():
        values = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**values, **changes}))
    return path


ACTIONS = {"read": read, "held_out": held_out, "train": train, "answer": answer, "predict": predict}
"""Functions by the name of the action in the log."""
WITH_MODEL = ("train", "answer", "predict")


def run_case(case: Mapping[str, Any], folder: Path) -> Outcome:
    """Return the outcome of a case: the result of its action, or the error that ended it."""
    for name, content in case["input"].get("files", {}).items():
        write_file(folder / name, content)
    before = Path.cwd()
    try:
        outcome = ACTIONS[case["input"]["do"]](case, folder)
    except UserError as error:
        outcome = {"refused": str(error)}
    except Exception as error:
        outcome = {"crashed": f"{type(error).__name__}: {error}"}
    finally:
        os.chdir(before)
    text = json.dumps(outcome, ensure_ascii=False).replace(f"{folder}/", "")
    return json.loads(_short(text, outcome))  # type: ignore[no-any-return]


def _short(text: str, outcome: Outcome) -> str:
    """Replace long texts with their length."""
    if len(text) < 2_000:
        return text
    shortened = {
        name: f"{len(value)} {name}" if isinstance(value, list) and name != "said" else value
        for name, value in outcome.items()
    }
    return json.dumps(shortened, ensure_ascii=False)


def differences(expected: Mapping[str, Any], outcome: Outcome) -> list[str]:
    """List the expectations that an outcome does not meet.

    `refused` and `said` are patterns to search for; other values must be equal.
    """
    wrong = []
    for name, value in expected.items():
        found = outcome.get(name)
        if name in ("refused", "said"):
            text = " ".join(found) if isinstance(found, list) else found or ""
            if not re.search(value, text) or "\n" in text:
                wrong.append(name)
        elif found != value:
            wrong.append(name)
    if "crashed" in outcome or ("refused" in outcome and "refused" not in expected):
        wrong.append("ended")
    return wrong


def main() -> None:
    """Run the cases and write their outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the cases whose citation or kind has it")
    only = parser.parse_args().only
    sys.path.insert(0, str(ROOT / "tests"))
    datasets.disable_progress_bars()
    log = json.loads(LOG.read_text())
    wrong = 0
    for case in log["cases"]:
        if only not in f"{case['citation']} {case['kind']}":
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_case(case, Path(folder))
        case.setdefault("happened", outcome)
        case.setdefault("fixed_by", None)
        case["now"] = outcome
        if missed := differences(case["expected"], outcome):
            wrong += 1
            print(f"{case['citation']} ({case['kind']}): {missed}\n    {outcome}")
    log.update(provenance() | {"cases": log["cases"], "wrong": wrong})
    LOG.write_text(json.dumps(log, indent=1, ensure_ascii=False) + "\n")
    kinds = dict(itertools.groupby(sorted(case["kind"] for case in log["cases"])))
    print(json.dumps({"cases": len(log["cases"]), "kinds": len(kinds), "wrong": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
