"""Choose the best engine for a model on this machine by speed and accuracy; store the choice.

Each candidate is compared with torch in float32: its speed in alternating rounds, its predictions
on the same labeled rows. Serving with `engine: auto` uses the stored choice.
"""

import math
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainyard.data import Splits
from trainyard.errors import UserError
from trainyard.evaluation.config import EngineConfig
from trainyard.evaluation.inputs import (
    EvaluatedModel,
    column_order,
    describe,
    in_task_order,
    labeled_splits,
    with_cuts,
    with_delimiter,
)
from trainyard.evaluation.scoring import score
from trainyard.inference import PREDICTORS, Predictor, Row
from trainyard.metrics import decode
from trainyard.models import ENGINES, FILE, INT8, machine, weights_of, with_safetensors
from trainyard.storage import replace_folder, scratch_path, versions, write_json
from trainyard.terminal import progress_bar, say, stage

SAME = 1e-4
"""Maximum difference from torch that counts as equal, relative to the largest output."""
WORTH = 1.05
"""Minimum speed of an engine that replaces torch, as a multiple of torch's."""
CALIBRATION_ROWS = 300
TIMED_ROWS = 256
ALONE_ROWS = 64
ROUNDS = 3


def choose_engine(config: EngineConfig) -> dict[str, Any]:
    """Measure all candidates; store the best in the model's folder, and return the job's JSON.

    The choice is written to engine.json, and the model in int8, if chosen, to engine/.

    Raises:
        UserError: The model is not a local folder, or the rows do not fit the model.
    """
    model = describe(config.model_name_or_path)
    if model.folder is None:
        raise UserError(
            f"what is measured is stored with the model, but {model.name} is not a local folder; "
            "download it and give its folder"
        )
    folder = Path(with_safetensors(str(model.folder))[0])  # the folder that a server reads
    stage(f"reading the labeled rows for {model.name}")
    splits = labeled_splits(with_delimiter(config, model), model)
    for note in splits.notes:
        say(note)
    if config.threads:
        torch.set_num_threads(config.threads)
    stage("predicting them with torch in float32")
    bench = Bench(model, splits, config)
    scratch, found = scratch_path(folder / INT8.parent), []
    try:
        every = candidates()
        with progress_bar(len(every), unit="engine", title="measure") as bar:
            for engine, dtype in every:
                found.append(bench.measure(engine, dtype, scratch))
                bar.update()
        best = best_of(found, config.max_loss)
        int8 = best["dtype"] == "int8"
        replace_folder(folder / INT8.parent, scratch if int8 else None)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result = {
        "engine": best["engine"],
        "dtype": best["dtype"],
        "speed": best["speed"],
        "score": bench.score(bench.expected),
        "score_metric": splits.task.score,
        "rows": len(bench.rows),
        "threads": torch.get_num_threads(),
        "candidates": found,
    }
    stored = {
        **result,
        "task": splits.task.name,
        "split": splits.splits[0].name,
        "max_loss": config.max_loss,
        "machine": machine(),
        "weights": weights_of(folder),
        "file": weights_of(folder / INT8.parent, "int8.*") if int8 else None,
        "versions": versions("openvino", "nncf"),
    }
    write_json(folder / FILE, stored)
    return {"job": "engine", "model": model.name, **result}


def candidates() -> list[tuple[str, str]]:
    """List the pairs (engine, dtype) that are compared with torch in float32."""
    return [(name, dtype) for name, engine in ENGINES.items() for dtype in engine.measured]


def best_of(found: Sequence[Mapping[str, Any]], max_loss: float) -> Mapping[str, Any]:
    """Return the fastest candidate with torch's outputs, or with a score at most `max_loss` lower.

    If none of them is at least WORTH times as fast as torch, return torch in float32.
    """
    able = [
        one for one in found
        if "refused" not in one and one["speed"] >= WORTH
        and (one["largest_difference"] <= SAME or (max_loss > 0 and one["loss"] <= max_loss))
    ]  # fmt: skip
    torch = {"engine": "torch", "dtype": "float32", "speed": 1.0}
    return max(able, key=lambda one: one["speed"], default=torch)


class Bench:
    """Benchmark of engines against torch in float32, on labeled rows.

    Attributes:
        rows: Tokenized rows that are scored and timed.
        expected: Logits of torch in the task's order, shape [rows, labels].
    """

    def __init__(self, model: EvaluatedModel, splits: Splits, config: EngineConfig) -> None:
        self._model, self._seed = model, config.seed
        self._order = column_order(model, splits.task, config.label_mapping)
        self._task = with_cuts(splits.task, model, self._order)
        self._torch = self.load("torch", "float32")
        self.rows: list[Row] = []
        labels: list[Any] = []
        for batch in splits.splits[0].batches():
            columns = [batch[name].to_pylist() for name in batch.schema.names if name != "label"]
            for values in zip(*columns, strict=True):
                body = dict(zip(("text", "text_pair"), values, strict=False))
                self.rows += self._torch.preprocess(body, {"truncation": True}).rows
            labels += batch["label"].to_pylist()
            if len(labels) >= config.num_rows + CALIBRATION_ROWS:
                break
        # The int8 scales come from rows that are not scored, if such rows exist.
        self._spare = (
            self.rows[config.num_rows :][:CALIBRATION_ROWS] or self.rows[:CALIBRATION_ROWS]
        )
        self.rows = self.rows[: config.num_rows]
        self._labels = np.asarray(labels[: config.num_rows])
        every = max(1, len(self.rows) // TIMED_ROWS)
        self._timed = self.rows[::every][:TIMED_ROWS]
        self.expected = self._logits(self._torch)

    def score(self, logits: NDArray[Any]) -> float:
        """Compute the task's headline metric of logits for `rows`, shape [rows, labels]."""
        found = score(self._task, logits, self._labels, seed=self._seed)["metrics"]
        return float(found[self._task.score])

    def measure(self, engine: str, dtype: str, scratch: Path) -> dict[str, Any]:
        """Measure a candidate and torch alternately; write an int8 model to `scratch`.

        Returns the figures, or the key `refused` with the reason if the candidate cannot run.
        """
        about: dict[str, Any] = {"engine": engine, "dtype": dtype}
        try:
            file = self._quantized(engine, scratch) if dtype == "int8" else None
            began = time.perf_counter()
            candidate = self.load(engine, dtype, file)
        except UserError as error:
            say(f"{engine} {dtype}: {error}")
            return {**about, "refused": str(error)}
        loaded = time.perf_counter() - began
        logits = self._logits(candidate)
        times = [(*self._times(candidate), *self._times(self._torch)) for _ in range(ROUNDS)]
        one, many, torch_one, torch_many = map(statistics.median, zip(*times, strict=True))
        found = {
            **about,
            "load_seconds": round(loaded, 1),
            "one_ms": round(1000 * one, 2),
            "torch_one_ms": round(1000 * torch_one, 2),
            "rows_per_second": round(1 / many, 1),
            "torch_rows_per_second": round(1 / torch_many, 1),
            "speed": round(math.sqrt(torch_one / one * torch_many / many), 3),
            "largest_difference": float(
                np.abs(logits - self.expected).max() / np.abs(self.expected).max()
            ),
            "changed_answers": self._changed(logits),
            "score": self.score(logits),
            "loss": self.score(self.expected) - self.score(logits),
        }
        say(
            f"{engine} {dtype}: {found['speed']:.2f} times torch, {self._task.score} {found['score']:.4f} "
            f"({0.0 - found['loss']:+.4f}), {found['changed_answers']} of {len(self.rows)} answers change"
        )
        return found

    def load(self, engine: str, dtype: str, file: Path | None = None) -> Predictor:
        return PREDICTORS["text-classification"].load(
            self._model.path, engine=engine, dtype=dtype, engine_file=file
        )

    def _quantized(self, engine: str, scratch: Path) -> Path | None:
        if (quantize := ENGINES[engine].quantize) is None:
            return None
        file = scratch / INT8.name
        quantize(self._torch.model, (self._torch.pad([row]) for row in self._spare), file)
        return file

    def _logits(self, predictor: Predictor) -> NDArray[Any]:
        return in_task_order(np.stack(predictor.forward_all(self.rows)), self._order)

    def _changed(self, logits: NDArray[Any]) -> int:
        """Count the rows whose prediction differs from torch's.

        The class or any label differs, or the value of a regression by 0.01 or more.
        """
        kind, cuts = self._task.problem_type, self._task.cuts
        said, before = (decode(kind, each, cuts) for each in (logits, self.expected))
        return int((np.abs(said - before) >= 0.01).reshape(len(logits), -1).any(axis=1).sum())

    def _times(self, predictor: Predictor) -> tuple[float, float]:
        alone = []
        for row in self._timed[:: max(1, len(self._timed) // ALONE_ROWS)]:
            began = time.perf_counter()
            predictor.forward([row])
            alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        predictor.forward_all(self._timed)
        return statistics.median(alone), (time.perf_counter() - began) / len(self._timed)
