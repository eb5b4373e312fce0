"""Tensors of a checkpoint, by their names in the model.

With sharded strategies, each worker writes some whole tensors; none gathers all.

    model-00001-of-00002.safetensors      weights, with model.safetensors.index.json as on the Hub
    optimizer-00001-of-00002.safetensors  moments, NAME.MOMENT; the rest is in optimizer.pt
"""

import copy
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from trainyard.errors import DamagedRun

OPTIMIZER_FILE = "optimizer.pt"
WEIGHTS_FILE = "model.safetensors"


class Copy(Protocol):
    """Copy a tensor into host memory; with `at_once`, the copy is complete on return."""

    def __call__(self, tensor: torch.Tensor, *, at_once: bool = False) -> torch.Tensor: ...


def bare(model: Any) -> Any:
    """Return the model inside DDP's wrapper or DeepSpeed's engine; FSDP has no wrapper."""
    return getattr(model, "module", model)


def owners(sizes: Mapping[str, int], writers: int) -> dict[str, int]:
    """Assign tensors to the workers that write them: largest first, to the least loaded worker.

    This is longest-processing-time-first scheduling (Graham 1969). Equal inputs give equal results.

    Args:
        sizes: Size of each tensor by name, in any unit, such as elements.
        writers: Number of workers.

    Returns:
        Rank of the writer of each tensor, by name.
    """
    loads, found = [0] * writers, dict[str, int]()
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        found[name] = loads.index(min(loads))
        loads[found[name]] += sizes[name]
    return found


def tied(model: Any, names: Iterable[str]) -> set[str]:
    """Return those of `names` whose tensor is stored under another of the names."""
    present = set(names)
    return {
        name
        for name, source in model.all_tied_weights_keys.items()
        if {name, source} <= present and name != source
    }


def part_file(name: str, writer: int, writers: int) -> str:
    """Return the name of a writer's part of a file, as on the Hub."""
    stem = Path(name).stem
    return f"{stem}-{writer + 1:05d}-of-{writers:05d}.safetensors"


def write_part(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    moments: Mapping[str, Mapping[str, torch.Tensor]],
    writer: int,
    writers: int,
) -> list[Path]:
    """Write a worker's part of the weights and moments; return the files."""
    files = []
    flat = {f"{name}.{key}": part for name, parts in moments.items() for key, part in parts.items()}
    for file, tensors in ((WEIGHTS_FILE, weights), (OPTIMIZER_FILE, flat)):
        dense = {name: tensor.contiguous() for name, tensor in tensors.items()}
        files.append(folder / part_file(file, writer, writers))
        _save(dense, files[-1])
    return files


def write_weights(folder: Path, weights: Mapping[str, torch.Tensor]) -> Path:
    """Write all weights into one file; return its path."""
    _save(dict(weights), folder / WEIGHTS_FILE)
    return folder / WEIGHTS_FILE


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Save tensors in a file with its folder's permissions; safetensors lets only the owner read it."""
    save_file(tensors, file, {"format": "pt"})
    file.chmod(file.parent.stat().st_mode & 0o666)


def write_config(folder: Path, model: Any) -> None:
    """Write a model's configs like `save_pretrained`, which would import DeepSpeed."""
    config = copy.deepcopy(model.config)
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # FSDP2 renames the class
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def write_index(folder: Path, parts: Iterable[Mapping[str, int]]) -> None:
    """Write the index of the weight files; `parts` holds each writer's bytes by tensor name."""
    parts = list(parts)
    index = {
        "metadata": {"total_size": sum(sum(part.values()) for part in parts)},
        "weight_map": {
            name: part_file(WEIGHTS_FILE, writer, len(parts))
            for writer, part in enumerate(parts)
            for name in part
        },
    }
    (folder / f"{WEIGHTS_FILE}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def whole_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint under the names by which they are stored."""
    files = [folder / WEIGHTS_FILE, *sorted(folder.glob("model-*-of-*.safetensors"))]
    return {name: t for file in files if file.exists() for name, t in load_file(file).items()}


def copy_weights(checkpoint: Path, target: Path) -> None:
    """Write a checkpoint's weights, in one or several parts, to one file in `target`.

    Several parts are loaded into memory together. Then `target` must hold config.json, whose
    permissions the file gets.
    """
    if (checkpoint / WEIGHTS_FILE).exists():
        shutil.copyfile(checkpoint / WEIGHTS_FILE, target / WEIGHTS_FILE)
    else:
        write_weights(target, whole_weights(checkpoint))
        shutil.copymode(
            target / "config.json", target / WEIGHTS_FILE
        )  # else only its owner can read it


def stored_moments(folder: Path) -> dict[str, Any]:
    """Return the state of a checkpoint's optimizer.

    Moments are views of mapped files: what is not used takes no memory.
    """
    stored: dict[str, Any] = torch.load(folder / OPTIMIZER_FILE, weights_only=True, mmap=True)
    for file in sorted(folder.glob("optimizer-*-of-*.safetensors")):
        for key, tensor in load_file(file).items():
            name, _, moment = key.rpartition(".")
            stored["state"].setdefault(name, {})[moment] = tensor
    return stored


def stored_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights under all names of `model`; it stores tied weights once.

    Raises:
        DamagedRun: The names of the stored weights are not those of the model.
    """
    weights = whole_weights(folder)
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
