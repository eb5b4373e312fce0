"""What runs a forward pass: torch, what torch.compile makes of it, or OpenVINO on a CPU.

Every engine is made from a torch model that was loaded and checked, and is compared with it before
it answers anybody; `choice.py` reads which one `jobs/engine.py` found to be the best for a model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainyard.errors import UserError
from trainyard.models.engines import compiled, openvino

EngineName = Literal["torch", "compile", "openvino"]

Batch = Mapping[str, Any]
"""Inputs of a model by name, tensors of shape [rows, tokens]."""

Run = Callable[..., Any]
"""Called as the model is, with a batch's tensors by name; its outputs by attribute."""


@dataclass(frozen=True)
class Engine:
    """A row of `ENGINES`.

    Attributes:
        build: makes a `Run` of (model, batch, dtype, file of stored weights).
        dtypes: what it computes in.
        loads: the type in which torch loads the weights; None: the same.
        keeps_model: whether it goes on using the torch model.
        passes: how many it may run at once, each with its share of torch's threads; None: any.
        quantize: stores what int8 needs, of (model, batches that show its range, file).
    """

    build: Callable[[Any, Batch, str, Path | None], Run]
    dtypes: tuple[str, ...]
    loads: str | None = None
    keeps_model: bool = True
    passes: int | None = None
    quantize: Callable[[Any, Iterable[Batch], Path], None] | None = None


ENGINES: dict[str, Engine] = {
    "torch": Engine(lambda model, *_: model, ("float32", "bfloat16", "float16")),
    "compile": Engine(compiled.build, ("float32", "bfloat16", "float16"), passes=1),
    "openvino": Engine(
        openvino.build,
        ("float32", "bfloat16", "int8"),
        loads="float32",
        keeps_model=False,
        passes=openvino.PASSES,
        quantize=openvino.quantize,
    ),
}

FAR = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02, "int8": 1.0}
"""By type: a mean difference from torch, as a part of the largest output, that only a wrong model has.
How good the answers are in each type is for `jobs/engine.py` to find out."""


def check_engine(name: str, dtype: str, device: str) -> None:
    """Refuse an engine that does not compute so, before a model is loaded for it.

    Raises:
        UserError: saying what it can run.
    """
    engine = ENGINES[name]
    if dtype not in engine.dtypes:
        raise UserError(f"engine {name} computes in {', '.join(engine.dtypes)}, not in {dtype}")
    if name == "openvino" and device != "cpu":
        raise UserError(f"engine openvino runs on the CPU, not on {device}; use torch or compile")


def start(
    name: str, model: Any, batches: Sequence[Batch], dtype: str, file: Path | None = None
) -> Run:
    """The engine of this name, made from `model` and compared with it on `batches`.

    The first batch shows what the inputs are; it needs rows of several lengths, so that nothing in
    the model is taken to be constant. Others should have other shapes.

    Raises:
        UserError: when the engine is not installed, the model generates, or the engine answers
            something else than the model.
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
        for share in {threads, max(1, threads // passes)}:  # alone, and beside others
            torch.set_num_threads(share)
            for batch in batches:
                _compare(name, dtype, model(**batch), run(**batch))
    finally:
        torch.set_num_threads(threads)
    return run


def _compare(name: str, dtype: str, expected: Any, found: Any) -> None:
    for key in openvino.tensors_of(expected):
        theirs, ours = expected[key].float(), getattr(found, key).float()
        far = float((theirs - ours).abs().mean() / theirs.abs().max().clamp(min=1e-6))
        if not far <= FAR[dtype]:  # also NaN
            raise UserError(
                f"engine {name} in {dtype} answers something else than the model (its {key} differ by "
                f"{far:.2g} of the largest); measure again by jobs/engine.py, or set engine to torch"
            )
