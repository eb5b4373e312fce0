"""Convert checkpoints that exist only as pickled `.bin` files to safetensors, once, into a cache.

No code in a pickled file is run: torch reads only tensors (`weights_only`). The original folder is
not changed.
"""

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from trainyard.errors import UserError
from trainyard.models.hub import MODEL_FILES, resolve_model
from trainyard.storage import sync_folder, sync_tree
from trainyard.terminal import say

WEIGHTS, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SAFE_WEIGHTS, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL_FILES = tuple(suffix for suffix in MODEL_FILES if suffix != ".safetensors")


def with_safetensors(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Return a folder or Hub id, and a revision, whose weights are safetensors.

    For a model with only pickled weights, this is the cache folder of the converted model, with the
    revision None. For any other model it is the result of `resolve_model`, with `revision`.

    Raises:
        UserError: The model is missing, its pickled weights are damaged or hold more than tensors,
            or the cache cannot be written.
    """
    found = resolve_model(name)
    if not _only_pickled(found, revision):
        return found, revision
    if Path(found).is_dir():
        folder = Path(found)
    else:
        from huggingface_hub import snapshot_download

        wanted = [f"*{suffix}" for suffix in SMALL_FILES] + ["pytorch_model*.bin"]
        folder = Path(snapshot_download(found, revision=revision, allow_patterns=wanted))
    return str(_converted(folder, name)), None


def _only_pickled(model: str, revision: str | None) -> bool:
    if any(Path(model).glob("*.safetensors")):
        return False
    from transformers.utils import has_file  # takes half a second, so not for folders as usual

    has = partial(has_file, model, revision=revision)
    try:
        return not (has(SAFE_WEIGHTS) or has(SAFE_INDEX)) and (has(WEIGHTS) or has(INDEX))
    except Exception:  # loading reports a model that cannot be found or reached
        return False


def _converted(folder: Path, name: str) -> Path:
    from huggingface_hub.constants import HF_HOME

    files = sorted(path for path in folder.rglob("*") if path.suffix in (*SMALL_FILES, ".bin"))
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps([str(folder), facts]).encode()).hexdigest()[:16]
    cache = Path(HF_HOME) / "trainyard" / "safetensors"
    target = cache / key
    if target.is_dir():
        return target
    say(f"{name} has only pickled weights: converting them to safetensors once, in {target}")
    try:
        return _fill(folder, target, files, name)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"model {name} could not be converted to safetensors in {target} ({error}); make room there, "
            "set HF_HOME to a folder that can be written, or get its weights as safetensors"
        ) from error


def _fill(folder: Path, target: Path, files: Sequence[Path], name: str) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        for path in files:
            if path.suffix != ".bin" and path.name != INDEX:
                copy = scratch / path.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        _convert(folder, scratch, name)
        sync_tree(scratch)  # a copy that exists is trusted, also after a power cut
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster
                raise
        sync_folder(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(folder: Path, target: Path, name: str) -> None:
    shards = list(_shards(folder, name))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = SAFE_WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(_save(folder / shard, target / file, name), file)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (target / SAFE_INDEX).write_text(json.dumps(index))


def _shards(folder: Path, name: str) -> Iterator[str]:
    if (folder / WEIGHTS).is_file():
        yield WEIGHTS
        return
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"model {name}: {INDEX} is not a valid index of weights; copy it again"
        ) from None
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UserError(
                f"model {name}: {INDEX} names the weights {shard!r}, which are not a file in the model's "
                "own folder; copy the whole model again"
            )
        yield shard


def _save(source: Path, target: Path, name: str) -> list[str]:
    """Write the tensors of a pickled file as safetensors; return the names of the tensors.

    Raises:
        UserError: The file is damaged, or holds anything but named tensors.
    """
    import torch
    from safetensors.torch import save_file

    try:
        state = torch.load(
            source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source)
        )
    except Exception as error:  # the reader of a damaged file can raise any exception
        raise UserError(
            f"model {name}: {source.name} is damaged or holds more than tensors, which could run code; get "
            "its weights as safetensors"
        ) from error
    if not isinstance(state, Mapping):
        raise UserError(
            f"model {name}: {source.name} holds no weights by name, so it is not of a transformers model; "
            "get its weights as safetensors"
        )
    others = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(
            f"model {name}: {source.name} holds {others[0]!r}, which is not a tensor, so it is not "
            "the weights of a transformers model; get its weights as safetensors"
        )
    # Safetensors refuses tied weights, which share memory: store copies, which loading ties again.
    copies = {key: value.detach().clone().contiguous() for key, value in state.items()}
    save_file(copies, target, metadata={"format": "pt"})
    return list(copies)
