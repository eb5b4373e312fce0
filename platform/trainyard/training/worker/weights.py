"""The weights of a checkpoint, by the names of the model that reads them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainyard.errors import DamagedRun

OPTIMIZER_FILE = "optimizer.pt"


def bare(model: Any) -> Any:
    """The model inside DDP or DeepSpeed's engine; FSDP leaves a model as it is."""
    return getattr(model, "module", model)


def stored_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights, under all names of `model`: tied ones are stored under one of theirs.

    Raises:
        DamagedRun: when they are not those of the model.
    """
    weights: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    for name, source in model.all_tied_weights_keys.items():
        if source in weights:
            weights.setdefault(name, weights[source])
    if odd := sorted(weights.keys() ^ model.state_dict().keys()):
        raise DamagedRun(
            f"checkpoint {folder} does not fit the model: {len(odd)} weights are in only one of the "
            f"two, such as {odd[0]}",
            remedy="use --fresh to train the run anew",
        )
    return weights
