"""Batch inference over files, in this process or in actors of Ray Data.

input files ──► raw parts ──► predictors ──► done parts ──► output file
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from trainyard.cluster import ray_session, worker_resources
from trainyard.config import python_function
from trainyard.data import quiet_ray_data
from trainyard.inference.batch.config import PredictConfig
from trainyard.inference.batch.parts import Parts
from trainyard.inference.batch.table import predict_table, request_parameters
from trainyard.inference.predictor import Predictor
from trainyard.terminal import progress_bar, stage


@python_function()
def predict(config: PredictConfig) -> dict[str, Any]:
    """Predict all rows of the input files into the output file; return the fields of the JSON line.

    After a kill, the same command resumes the job. Rows that cannot be read or answered stay in the
    output, with the reason in `error`.

    Raises:
        UserError: A file, column, parameter or model cannot be used.
        HeldError: Another job writes the output file.
        SupersededError: Another job has taken over the output file.
    """
    started = time.monotonic()
    config = config.pinned().with_columns()
    parts = Parts(config)
    with parts.lease() as lease:
        try:
            stage(f"loading {config.model_name_or_path}")
            predictor = config.predictor()
            request_parameters(predictor, config)
            stage(f"reading {config.input_file}")
            parts.read()
            resumed = parts.rows_done
            with progress_bar(parts.rows, unit="row", title="predict", done=resumed) as bar:
                for rows in _predicted(config, predictor, parts):
                    lease.poll()
                    bar.update(rows)
            counts = parts.assemble()
        except Exception:
            lease.check()  # a job that was taken over fails on files that its successor deleted
            raise
    seconds = time.monotonic() - started
    return {
        "job": "predict",
        "run": Path(config.output_file).name,
        "task": predictor.task,
        "score": None,
        "metrics": {},
        "model": config.model_name_or_path,
        "seconds": round(seconds, 3),
        "output_file": config.output_file,
        **counts,
        "resumed_rows": resumed,
        "predict_rows_per_second": round((counts["rows"] - resumed) / seconds, 1),
    }


def _predicted(config: PredictConfig, predictor: Predictor, parts: Parts) -> Iterator[int]:
    missing = parts.missing()
    if config.num_workers == 1 and config.address is None:
        for path in missing:
            yield _predict_part(predictor, config, parts, path)
    elif missing:
        del predictor  # each worker loads a predictor
        yield from _on_ray(config, parts, missing)


def _predict_part(predictor: Predictor, config: PredictConfig, parts: Parts, raw: Path) -> int:
    table = predict_table(predictor, config, pq.read_table(raw))
    parts.store(raw, table)
    return int(table.num_rows)


def _on_ray(config: PredictConfig, parts: Parts, missing: list[Path]) -> Iterator[int]:
    """Predict parts in Ray Data's actors; yield numbers of rows. Parts of lost actors rerun."""
    import ray

    with ray_session(config), quiet_ray_data():
        resources = worker_resources(config)
        counts = (
            ray.data.from_items([str(path) for path in missing], override_num_blocks=len(missing))
            .map_batches(
                _Worker,
                fn_constructor_args=(config.located(), parts, int(resources.get("CPU", 1))),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=config.num_workers),
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
            )
            .iter_batches(batch_size=None)
        )
        for batch in counts:
            yield int(batch["rows"].sum())


class _Worker:
    """Actor with one copy of the model; it stores its predictions, and returns counts of rows."""

    def __init__(self, config: PredictConfig, parts: Parts, threads: int) -> None:
        torch.set_num_threads(max(threads, 1))
        self._config, self._parts = config, parts
        self._predictor = config.predictor()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [
            _predict_part(self._predictor, self._config, self._parts, Path(path))
            for path in batch["item"]
        ]
        return {"rows": np.array(rows)}
