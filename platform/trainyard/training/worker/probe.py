"""Try a model on two rows before it trains: its padding, and the parameters that no loss reaches."""

import math
from typing import TYPE_CHECKING

import torch

from trainyard.config import TrainConfig
from trainyard.data import PreparedData, TokenTable
from trainyard.errors import UserError
from trainyard.evaluation import padding_of
from trainyard.models import Padding, pad_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def probe(model: "PreTrainedModel", config: TrainConfig, data: PreparedData) -> Padding:
    """Make a model that was just built ready for training; return the padding that it needs.

    A missing padding token is set. Parameters without gradient are frozen, as DDP and the sum of
    gradients need one from each: the optimizer would leave them as they are, so no bit changes.
    All processes do the same on the same rows.

    Raises:
        UserError: when the model cannot train on batches of such lengths.
    """
    _check_lengths(model, config)
    table = data.table("train")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = table.info["pad_id"]
    with torch.random.fork_rng(devices=[]):
        model.eval()
        padding = padding_of(model, table, data.padding_side)
        _freeze_unused(model, table, padding)
    return padding


def _check_lengths(model: "PreTrainedModel", config: TrainConfig) -> None:
    """Refuse lengths that Reformer only accepts in evaluation, where it pads them."""
    shape = getattr(model.config, "axial_pos_shape", None)
    if not shape:
        return
    if model.config.axial_pos_embds:
        length = math.prod(shape)
        fits = config.max_length == length
    else:
        length = math.lcm(model.config.lsh_attn_chunk_length, model.config.local_attn_chunk_length)
        fits = config.max_length % length == 0
    if not (fits and config.pad_to_max_length):
        raise UserError(
            f"{config.model_name_or_path} trains on rows of exactly {length} tokens; use "
            f"--max-length {length} --pad-to-max-length"
        )


def _freeze_unused(model: "PreTrainedModel", table: TokenTable, padding: Padding) -> None:
    if model.config.model_type == "reformer":
        return  # its backward pass runs in training mode only
    rows = table.two_rows()
    arrays = pad_rows(
        rows[:1] if padding.equal_lengths else rows, {"input_ids": table.info["pad_id"]}, padding
    )
    with torch.enable_grad():
        outputs = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        outputs.logits.sum().backward()
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None
