"""OpenVINO engine: the traced model on a CPU, in float32, int8, or bfloat16 if supported.

The model is compiled twice: for one pass on all cores, and for two concurrent passes on half of the
cores each. Two passes have a higher throughput, because fewer cores synchronize after each
operation. The weights are in memory twice.

ONNX Runtime is as fast in float32, but its dynamic int8 scales a whole batch by its largest value.
With OpenVINO, the output for a row depends on no other row, whatever the dtype.
"""

import contextlib
import io
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainyard.errors import UserError, one_line
from trainyard.models.hub import quiet

Batch = Mapping[str, Any]

PASSES = 2
"""Maximum number of concurrent passes."""


def build(model: Any, batch: Batch, dtype: str, file: Path | None) -> Callable[..., Any]:
    """Compile the model, traced with `batch`, or for int8 the quantized model stored in `file`.

    Returns a function that takes a batch's tensors as keywords and returns outputs as attributes.

    Raises:
        UserError: OpenVINO is not installed, the CPU does not compute in `dtype`, int8 has no
            `file`, or OpenVINO cannot run the model.
    """
    import torch

    openvino = load()
    core = openvino.Core()
    if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("this CPU does not compute in bfloat16; use float32")
    if dtype == "int8" and file is None:
        raise UserError("engine openvino in int8 needs weights that `trainyard engine` has stored")
    names = list(batch)
    keys = tensors_of(model(**batch))
    threads = torch.get_num_threads()

    def compiled(passes: int) -> Any:
        return core.compile_model(
            source,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
                "NUM_STREAMS": passes,
            },
        )

    try:
        source = core.read_model(file) if dtype == "int8" else convert(model, batch)
        alone = compiled(1)
        beside = compiled(PASSES) if threads >= PASSES else alone
    except RuntimeError as error:
        raise UserError(
            f"OpenVINO cannot run this model ({one_line(error, 200)}); use torch"
        ) from error
    requests = threading.local()  # an OpenVINO request belongs to one thread

    def run(**tensors: Any) -> SimpleNamespace:
        if not hasattr(requests, "alone"):
            requests.alone = alone.create_infer_request()
            requests.beside = beside.create_infer_request()
        request = requests.alone if torch.get_num_threads() == threads else requests.beside
        found = request.infer([tensors[name].numpy() for name in names])
        # Copy: the next pass of the thread writes into the same memory.
        return SimpleNamespace(
            **{key: torch.from_numpy(found[i].copy()) for i, key in enumerate(keys)}
        )

    return run


def load() -> Any:
    """Import OpenVINO without its telemetry.

    Raises:
        UserError: OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            "engine openvino needs OpenVINO; install it with `pip install openvino nncf`"
        ) from error
    return openvino


def convert(model: Any, batch: Batch) -> Any:
    """Convert a torch model to an OpenVINO model for batches of any shape, traced with `batch`."""
    import torch

    openvino = load()
    names, keys = list(batch), tensors_of(model(**batch))

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            found = self.model(**dict(zip(names, tensors, strict=True)))
            return tuple(found[key] for key in keys)

    with torch.inference_mode(), warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # of tracing; `start` detects wrong outputs
        return openvino.convert_model(Flat(), example_input=tuple(batch.values()))


def quantize(model: Any, batches: Iterable[Batch], file: Path) -> None:
    """Store the model in `file` with weights and activations in int8, calibrated on `batches`.

    The scales of NNCF's static quantization are constants, so the output for a row does not depend
    on the other rows of its batch.

    Raises:
        UserError: OpenVINO or NNCF is not installed.
    """
    openvino = load()
    try:
        import nncf
    except ImportError as error:
        raise UserError("int8 needs NNCF; install it with `pip install nncf`") from error
    nncf.set_log_level("ERROR")
    examples = list(batches)
    inputs = [[tensor.numpy() for tensor in batch.values()] for batch in examples]
    with contextlib.redirect_stdout(io.StringIO()):  # NNCF's progress bars
        quantized = nncf.quantize(
            convert(model, examples[0]),
            nncf.Dataset(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(inputs),
        )
    file.parent.mkdir(exist_ok=True)
    openvino.save_model(quantized, file, compress_to_fp16=False)


def tensors_of(outputs: Any) -> list[str]:
    """Return the names of the outputs that are tensors, in order."""
    import torch

    return [key for key, value in outputs.items() if isinstance(value, torch.Tensor)]
