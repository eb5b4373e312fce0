"""Padding under which a model's output for a row does not depend on the other rows of its batch.

Most models ignore masked tokens at any position. XLNet reads the last position, so it needs padding
on the left. FNet, CANINE, MobileBERT, ConvBERT and others mix masked tokens into their outputs:
only rows of equal length may share a pass. Configs do not record this
property, so each model is tested once, when it is loaded.
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
"""Maximum change of an output by other rows, relative to the largest output, by dtype."""

FLOAT32_PARAMETERS = 600_000_000
"""Maximum parameters of a half-precision model that is tested in float32, in twice the memory."""


@dataclass(frozen=True)
class Padding:
    """Padding of a batch.

    Attributes:
        side: Side on which rows are padded.
        equal_lengths: True if only rows of equal length may share a forward pass.
    """

    side: Side = "right"
    equal_lengths: bool = False

    @property
    def note(self) -> str | None:
        """Note for the user on unusual padding; None for padding on the right."""
        if self.equal_lengths:
            return (
                "the model's answers depend on padding, so only rows of equal length share a "
                "forward pass"
            )
        return "the model needs padding on the left" if self.side == "left" else None

    def span(self, length: int, width: int) -> slice:
        """Return the positions of a row of `length` tokens in a batch of `width` tokens."""
        return slice(width - length, None) if self.side == "left" else slice(length)

    def starts(self, lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """Return the first positions of rows of `lengths` tokens in a batch of `width` tokens."""
        return width - lengths if self.side == "left" else np.zeros_like(lengths)


RIGHT = Padding()


def pad_rows(
    rows: Sequence[Mapping[str, Sequence[int]]], fill: Mapping[str, int], padding: Padding
) -> dict[str, NDArray[np.int64]]:
    """Pad tokenized rows to arrays of shape [rows, longest row], by input name.

    The arrays include `attention_mask`. `fill` holds the padding value of each input that is not
    padded with 0.
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
    """Find the padding under which a row has the same output alone and next to a longer row.

    Padding on the right is tried first, then `side`; if both change the output, only rows of equal
    length may share a pass. A half-precision model is tested in float32, unless it is large: the
    rounding error of a small output, such as a regression's near 0, would look like a change by the
    other row.

    Args:
        model: Model whose outputs come from one forward pass.
        rows: A row and a longer row, as token lists by input name.
        fill: Padding values, as for `pad_rows`.
        side: Value of the tokenizer's `padding_side`.

    Raises:
        UserError: The model does not accept rows of this length.
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
        # CANINE pools four tokens into one: a row of 4, 8, 12 … tokens would hide its dependence.
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
    """Convert a model to float32 inside the block, unless it exceeds FLOAT32_PARAMETERS.

    The original weights are restored exactly, because float32 holds every half-precision value.
    """
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
    """Return the largest change of the first row's output, relative to the largest output value.

    Returns infinity if the shapes of the outputs differ, or if a change is NaN.
    """
    scale = together.abs().max().clamp(min=1e-6)
    together = together[0]
    if alone.ndim and (alone.shape[0], together.shape[0]) == (short, long):  # one output a token
        together = together[padding.span(short, long)]
    if alone.shape != together.shape:
        return float("inf")
    return float(((alone - together).abs().max() / scale).nan_to_num(nan=float("inf")))


def use_fixed_hashes(model: "PreTrainedModel") -> None:
    """Fix the seed of Reformer's random hashes, so that equal rows get equal outputs."""
    for module in model.modules():
        if getattr(module, "hash_seed", ...) is None:
            module.hash_seed = 0


def use_full_attention(model: "PreTrainedModel") -> None:
    """Select BigBird's full attention: otherwise the first short batch switches to it permanently."""
    base = model.base_model
    if getattr(base, "attention_type", None) == "block_sparse":
        base.set_attention_type("original_full")
