"""Engines of forward passes: torch, torch.compile, and OpenVINO on a CPU.

An engine is one entry of ENGINES. It is built from a torch model that was loaded and checked, and
its outputs are compared with the model's before the first request. `choice.py` reads the engine
that `trainyard engine` stored with a model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainyard.errors import UserError, one_line
from trainyard.models.engines import openvino

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

Batch = Mapping[str, "torch.Tensor"]
"""Model inputs by name, of shape [rows, tokens]."""

Run = Callable[..., Any]
"""Function that takes a batch's tensors as keywords, as the model does; returns outputs as
attributes."""


@dataclass(frozen=True)
class Engine:
    """Engine of forward passes, an entry of `ENGINES`.

    Attributes:
        build: Builds a `Run` from (model, batch, dtype, file of stored weights).
        dtypes: Supported dtypes.
        measured: Dtypes that `trainyard engine` compares with torch in float32.
        devices: Supported kinds of device; empty for any.
        loads: Dtype in which torch loads the weights; None for the dtype of the engine.
        keeps_model: True if the engine needs the torch model after `build`.
        passes: Maximum number of concurrent passes, which share torch's threads; None without a
            maximum.
        quantize: Stores the int8 model, given (model, calibration batches, file); None without
            int8.
    """

    build: "Callable[[PreTrainedModel, Batch, str, Path | None], Run]"
    dtypes: tuple[str, ...]
    measured: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    loads: str | None = None
    keeps_model: bool = True
    passes: int | None = None
    quantize: "Callable[[PreTrainedModel, Iterable[Batch], Path], None] | None" = None


def _compile(model: "PreTrainedModel", batch: Batch, dtype: str, file: Path | None) -> Run:
    """Compile the model for batches of any shape, which can take minutes.

    Raises:
        UserError: Torch cannot compile the model, for example without a C++ compiler.
    """
    import torch
    from torch._dynamo.exc import TorchDynamoException

    del dtype, file  # the weights have their type already
    compiled: Run = torch.compile(model, dynamic=True)
    try:
        with torch.inference_mode():
            compiled(**batch)
    except TorchDynamoException as error:
        reason = one_line(str(error).partition("\n\n")[0], 200)  # torch's advice follows
        raise UserError(
            f"torch.compile cannot run this model ({reason}); install g++ if there is no compiler, "
            "else use torch"
        ) from error
    return compiled


ENGINES: dict[str, Engine] = {
    "torch": Engine(lambda model, *_: model, ("float32", "bfloat16", "float16"), ("bfloat16",)),
    "compile": Engine(_compile, ("float32", "bfloat16", "float16"), ("float32",), passes=1),
    "openvino": Engine(
        openvino.build,
        ("float32", "bfloat16", "int8"),
        ("float32", "bfloat16", "int8"),
        devices=("cpu",),
        loads="float32",
        keeps_model=False,
        passes=openvino.PASSES,
        quantize=openvino.quantize,
    ),
}

if TYPE_CHECKING:
    EngineName = str
else:  # the help of flags lists the engines
    EngineName = Literal[tuple(ENGINES)]

FAR = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02, "int8": 1.0}
"""Maximum mean difference from torch, relative to the largest output, by dtype. A larger difference
means a wrong model. `trainyard engine` measures the quality of each dtype."""


def check_engine(name: str, dtype: str, device: str) -> None:
    """Refuse a dtype or device that an engine does not support, before a model is loaded.

    Raises:
        UserError: The engine does not support `dtype` or `device`.
    """
    engine = ENGINES[name]
    if dtype not in engine.dtypes:
        raise UserError(f"engine {name} computes in {', '.join(engine.dtypes)}, not in {dtype}")
    if engine.devices and device.split(":")[0] not in engine.devices:
        others = [other for other, row in ENGINES.items() if not row.devices]
        raise UserError(
            f"engine {name} runs on {' and '.join(engine.devices)}, not on {device}; use "
            f"{' or '.join(others)}"
        )


def start(
    name: str,
    model: "PreTrainedModel",
    batches: Sequence[Batch],
    dtype: str,
    file: Path | None = None,
) -> Run:
    """Build an engine from `model` and compare it with the model on `batches`.

    The first batch is traced. Its rows need different lengths, so that no dimension is taken as
    constant. The other batches should have other shapes. `file` holds the stored int8 model.

    Raises:
        UserError: The engine is not installed, the model generates text, or the outputs differ.
    """
    if model.can_generate():
        raise UserError(
            f"engine {name} is for models of one forward pass, and this one generates; use torch"
        )
    import torch

    engine = ENGINES[name]
    run = engine.build(model, batches[0], dtype, file)
    passes = engine.passes or 1
    threads = torch.get_num_threads()
    try:
        for share in {threads, max(1, threads // passes)}:  # alone, and next to other passes
            torch.set_num_threads(share)
            for batch in batches:
                _compare(name, dtype, model(**batch), run(**batch))
    finally:
        torch.set_num_threads(threads)
    return run


def _compare(name: str, dtype: str, expected: "ModelOutput", outputs: Any) -> None:
    for key in openvino.tensors_of(expected):
        theirs, ours = expected[key].float(), getattr(outputs, key).float()
        far = float((theirs - ours).abs().mean() / theirs.abs().max().clamp(min=1e-6))
        if not far <= FAR[dtype]:  # also NaN
            raise UserError(
                f"engine {name} in {dtype} gives other outputs than the model (its {key} differ by "
                f"{far:.2g} of the largest); measure again by `trainyard engine`, or set engine to torch"
            )
