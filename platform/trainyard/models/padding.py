"""Padding under which a model's answer to a row does not depend on the other rows of its batch.

Most models ignore tokens that the attention mask hides, wherever they are. XLNet reads the last
position, so it needs padding on the left. FNet, CANINE, MobileBERT, ConvBERT and others mix hidden
tokens into their answers: only rows of equal length may share a pass. No config says so; a model is
tried once, when it is loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from trainyard.errors import UserError, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

Side = Literal["right", "left"]

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""By number type: maximum change of an output by its neighbors, as a part of the largest output."""

FLOAT32_PARAMETERS = 600_000_000
"""Maximum parameters of a half-precision model that is tried in float32, which needs twice its memory."""


@dataclass(frozen=True)
class Padding:
    """Side on which rows are padded, and whether rows of different lengths may share a pass."""

    side: Side = "right"
    equal_lengths: bool = False

    @property
    def note(self) -> str | None:
        """One sentence for people; None for padding on the right, which is usual."""
        if self.equal_lengths:
            return (
                "the model's answers depend on padding, so only rows of equal length share a "
                "forward pass"
            )
        return "the model needs padding on the left" if self.side == "left" else None

    def span(self, length: int, width: int) -> slice:
        """Positions of a row of `length` tokens in a batch of `width` tokens."""
        return slice(width - length, None) if self.side == "left" else slice(length)

    def starts(self, lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """First positions of rows of `lengths` tokens in a batch of `width` tokens."""
        return width - lengths if self.side == "left" else np.zeros_like(lengths)


RIGHT = Padding()


def pad_rows(
    rows: Sequence[Mapping[str, Sequence[int]]], fill: Mapping[str, int], padding: Padding
) -> dict[str, NDArray[np.int64]]:
    """Arrays of shape [rows, longest row] by input name, with `attention_mask`.

    `fill` holds the padding values that are not 0.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    width = max(lengths)
    batch = {}
    for name in [*rows[0], "attention_mask"]:
        values = np.full((len(rows), width), fill.get(name, 0), np.int64)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            values[i, padding.span(length, width)] = 1 if name == "attention_mask" else row[name]
        batch[name] = values
    return batch


def find_padding(
    model: "PreTrainedModel",
    rows: Sequence[Mapping[str, Sequence[int]]],
    fill: Mapping[str, int],
    side: str,
) -> Padding:
    """Compare a model's output for a row alone and next to a longer row.

    A half-precision model is compared in float32: the rounding of a small output, such as a
    regression's near zero, would look like a change by its neighbors.

    Args:
        model: Any model of one forward pass.
        rows: A row, and a longer one.
        fill: As for `pad_rows`.
        side: The tokenizer's `padding_side`, tried where padding on the right fails.

    Raises:
        UserError: The model accepts rows of some lengths only.
    """
    import torch

    def outputs(some: Sequence[Mapping[str, Sequence[int]]], padding: Padding) -> "ModelOutput":
        arrays = pad_rows(some, fill, padding)
        with torch.no_grad():
            result: ModelOutput = model(
                **{name: torch.from_numpy(array).to(model.device) for name, array in arrays.items()}
            )
        return result

    first = dict(rows[0])
    if len(first["input_ids"]) % 2 == 0 and len(first["input_ids"]) > 4:
        # CANINE pools four tokens into one: rows of a multiple of it would not show the padding.
        first = {name: [*values[:1], *values[2:]] for name, values in first.items()}
    rows = [first, rows[1]]
    short, long = (len(row["input_ids"]) for row in rows)
    sides: list[Side] = ["right", "left"] if side == "left" else ["right"]
    with _in_float32(model):
        try:
            alone = outputs(rows[:1], RIGHT)
        except RuntimeError as error:
            if "shape" not in str(error):  # a fault of the device
                raise
            raise UserError(
                f"the model cannot run on rows of {short} tokens ({one_line(error)}); use a "
                "model that takes rows of any length"
            ) from error
        limit = TOLERANCE[str(model.dtype).removeprefix("torch.")]
        for padding in map(Padding, sides):
            together = outputs(rows, padding)
            moved = [
                _moved(alone[key][0], together[key], short, long, padding)
                for key in alone
                if isinstance(alone[key], torch.Tensor) and alone[key].is_floating_point()
            ]
            if all(change <= limit for change in moved):
                return padding
    return Padding(equal_lengths=True)


@contextmanager
def _in_float32(model: "PreTrainedModel") -> Iterator[None]:
    """Hold a model in float32 inside the block, unless it is large; restore its weights exactly."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    dtypes = [tensor.dtype for tensor in tensors]
    small = sum(tensor.numel() for tensor in tensors) <= FLOAT32_PARAMETERS
    try:
        for tensor in tensors if small else ():
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


def _moved(
    alone: "torch.Tensor", together: "torch.Tensor", short: int, long: int, padding: Padding
) -> float:
    """Largest change of the first row's output, relative to the largest value of both rows.

    Infinite for an output of another shape.
    """
    scale = together.abs().max().clamp(min=1e-6)
    together = together[0]
    if alone.ndim and (alone.shape[0], together.shape[0]) == (short, long):  # one output a token
        together = together[padding.span(short, long)]
    if alone.shape != together.shape:
        return float("inf")
    return float(((alone - together).abs().max() / scale).nan_to_num(nan=float("inf")))


def use_fixed_hashes(model: "PreTrainedModel") -> None:
    """Give Reformer's random hashes a seed, so that equal rows get equal answers."""
    for module in model.modules():
        if getattr(module, "hash_seed", ...) is None:
            module.hash_seed = 0


def use_full_attention(model: "PreTrainedModel") -> None:
    """Select BigBird's full attention, to which it would switch after its first short batch."""
    base = model.base_model
    if getattr(base, "attention_type", None) == "block_sparse":
        base.set_attention_type("original_full")
