"""Compare engines for a classifier on a CPU: torch, OpenVINO and ONNX Runtime, float32 and int8.

    pip install 'trainyard[openvino]' onnx onnxruntime
    python benchmarks/compare_engines.py --model-name-or-path runs/NAME/model --data-dir glue --threads 2

Each engine is measured as in jobs/engine.py, in turn with torch. ONNX Runtime is not an engine of
the package. Its model is exported by torch.onnx; int8 is `quantize_dynamic` (weights per channel,
activations by their range in the pass). `neighbors` is the largest change of a row's outputs when
rows of equal length share its pass, relative to the largest output. Writes
benchmarks/results/engines.json.
"""

import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from provenance import provenance

from trainyard.command import parse
from trainyard.evaluation.config import EngineConfig
from trainyard.evaluation.engine_choice import Bench, candidates
from trainyard.evaluation.inputs import describe, labeled_splits
from trainyard.inference.predictor import Predictor
from trainyard.inference.request_tokens import Row
from trainyard.models.engines.registry import ENGINES, Engine

TOGETHER = 8


def onnx_runtime(model: Any, batch: Any, dtype: str, file: Path | None) -> Callable[..., Any]:
    """Build a forward function on ONNX Runtime, with torch's number of threads."""
    import onnx
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del file
    names = list(batch)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(names, tensors, strict=True))).logits

    shapes = [{0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", min=4)} for _ in names]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Logits(), tuple(batch.values()), path, input_names=names, output_names=["logits"],
                dynamic_shapes=(tuple(shapes),), dynamo=True, verbose=False,
            )  # fmt: skip
        if dtype == "int8":
            exported = onnx.load(path)
            del exported.graph.value_info[:]  # shapes that its own shape inference contradicts
            onnx.save(exported, path)
            int8 = path.with_name("int8.onnx")
            quantize_dynamic(path, int8, weight_type=QuantType.QInt8, per_channel=True)
            path = int8
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(**tensors: Any) -> SimpleNamespace:
        (logits,) = session.run(None, {name: tensors[name].numpy() for name in names})
        return SimpleNamespace(logits=torch.from_numpy(logits))

    return run


def neighbors(predictor: Predictor, rows: Sequence[Row]) -> float:
    """Return the largest change of a row by others in its pass, relative to the largest output."""
    by_length: dict[int, list[Row]] = {}
    for row in rows:
        by_length.setdefault(row.length, []).append(row)
    moved, largest = 0.0, 0.0
    for group in by_length.values():
        if len(group) >= TOGETHER:
            together = np.stack(predictor.forward(group[:TOGETHER]))
            alone = np.stack([predictor.forward([row])[0] for row in group[:TOGETHER]])
            moved = max(moved, float(np.abs(together - alone).max()))
            largest = max(largest, float(np.abs(alone).max()))
    return moved / largest


def main() -> None:
    """Measure all engines and store the results."""
    import torch

    config = parse(EngineConfig)
    ENGINES["onnxruntime"] = Engine(
        onnx_runtime, ("float32", "int8"), loads="float32", keeps_model=False
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    model = describe(config.model_name_or_path)
    splits = labeled_splits(config, model)
    bench = Bench(model, splits, config)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for engine, dtype in (*candidates(), ("onnxruntime", "float32"), ("onnxruntime", "int8")):
            one = bench.measure(engine, dtype, Path(folder))
            if "refused" not in one:
                file = Path(folder) / "int8.xml" if dtype == "int8" else None
                one["neighbors"] = neighbors(bench.load(engine, dtype, file), bench.rows)
            found.append(one)
    result = {
        **provenance(config.data_dir, config.model_name_or_path),
        "task": splits.task.name,
        "rows": len(bench.rows),
        "threads": torch.get_num_threads(),
        "score": bench.score(bench.expected),
        "engines": found,
    }
    path = Path(__file__).parent / "results" / "engines.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({f"{one['engine']} {one['dtype']}": one.get("speed") for one in found}))


if __name__ == "__main__":
    main()
