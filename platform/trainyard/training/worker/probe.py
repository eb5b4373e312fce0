"""Try a model on two rows before training, to find its padding and its unused parameters."""

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
    """Prepare a new model for training, and return the padding that it needs.

    A missing padding token is set. Parameters that get no gradient are frozen, because DDP and the
    sum of gradients need a gradient from each parameter. The optimizer would not change them
    anyway. All processes use the same rows, so they get the same result. The model is left in
    evaluation mode.

    Raises:
        UserError: The model cannot train on rows of the configured lengths.
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
    """Refuse row lengths that Reformer accepts only in evaluation, where it pads them.

    Raises:
        UserError: The model is a Reformer and --max-length or the padding does not fit it.
    """
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
