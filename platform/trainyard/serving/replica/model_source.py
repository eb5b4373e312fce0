"""Find a model's folder and lineage, and check its files before a model is built from them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from ray._private import utils as ray_utils
from safetensors import SafetensorError, safe_open

from trainyard.errors import UserError, one_line
from trainyard.inference import PREDICTORS, task_for
from trainyard.models import FLOAT32_PARAMETERS, MODEL_FILES, with_safetensors
from trainyard.serving.options import Version

LINEAGE = ("name", "identity", "data_fingerprint", "versions", "status")
"""Keys of run.json that describe the model of a run."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Number type -> bytes per parameter."""

MEMORY_FACTOR = 1.2
"""Memory needed to load a model, relative to the bytes of its weights."""


def locate(version: Version, max_parameters: float) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a version, and its source, revision, run, examples and metrics.

    Raises:
        UserError: The model is missing, has no safetensors, or has more than `max_parameters`. Or
            its config describes a larger model than its weights: transformers would initialize the
            missing weights randomly.
    """
    path, revision = with_safetensors(version.source, version.revision)
    folder = Path(path) if Path(path).is_dir() else _from_hub(path, revision)
    _check_size(folder, max_parameters, version.source)
    about: dict[str, Any] = {"source": version.source, "revision": version.revision}
    run = _read_json(folder.parent / "run.json")
    if run and folder.name == "model":
        about["run"] = {key: run[key] for key in LINEAGE if key in run} | {
            "config": run.get("config", {})
        }
        about["examples"] = run.get("examples", [])
    metrics = _read_json(folder / "metrics.json")
    if metrics:
        about["metrics"] = metrics
    return folder, about


def task_of(folder: Path) -> str:
    """Return the task of a model: the first whose predictor supports its config's architecture.

    Raises:
        UserError: No predictor supports the architecture.
    """
    architectures = _read_json(folder / "config.json").get("architectures") or []
    if (task := task_for(architectures)) is not None:
        return task
    raise UserError(
        f"{folder} is a model of kind {', '.join(map(str, architectures)) or 'unknown'}, which no "
        f"task supports; set `task` to one of {', '.join(PREDICTORS)} if it fits"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    patterns = [f"*{ending}" for ending in MODEL_FILES]
    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        )
    except Exception as error:  # its errors have no other common base
        reason = one_line(error, 200)
        raise UserError(
            f"model '{name}' is not a local folder and could not be downloaded from the Hub ({reason}); "
            "check the name, connect to the Hub, or give a local folder"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_size(folder: Path, limit: float, source: str) -> None:
    config = _read_json(folder / "config.json")
    if not config:
        raise UserError(f"model {source}: its config.json is missing or not valid JSON")
    files = weight_files(folder)
    if not files:
        raise UserError(
            f"model {source}: there are no weights in safetensors; pickled ones are read from "
            "pytorch_model.bin only; save the model with transformers' save_pretrained"
        )
    stored = sum(_parameters_in(file, source) for file in files)
    estimates = [_parameters_of(part) for part in _configs(config)]
    described, estimate = (sum(each) for each in zip(*estimates, strict=True))
    if max(stored, described) > limit:
        raise UserError(
            f"model {source} has {max(stored, described):.3g} parameters, at most {limit:.3g} are "
            "loaded; set max_parameters to load it"
        )
    if described > 2 * stored + 1e6 or estimate > 2 * stored + 1e8:
        raise UserError(
            f"model {source}: config.json describes about {estimate:.3g} parameters and the weights "
            f"hold {stored:.3g}; these files do not belong together"
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers loads.

    These are model.safetensors, else the shards of an index, else all files. A folder may hold the
    first two, and a copy under another name (`consolidated.safetensors`).
    """
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    shards = _read_json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(shards, dict):
        found = {folder / Path(str(name)).name for name in shards.values()}
        return sorted(file for file in found if file.is_file())
    return sorted(folder.glob("*.safetensors"))


def _parameters_in(file: Path, source: str) -> int:
    try:
        with safe_open(file, framework="numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"model {source}: {file.name} is not a valid safetensors file ({error}); copy it again"
        ) from None


def check_memory(folder: Path, dtype: str, device: str, source: str) -> None:
    """Refuse a model that does not fit into free memory: loading it would end the process.

    Raises:
        UserError: The model needs more memory than is free on `device`.
    """
    stored = sum(_parameters_in(file, source) for file in weight_files(folder))
    tried = DTYPE_BYTES["float32"] if stored <= FLOAT32_PARAMETERS else 0  # see `find_padding`
    needed = stored * max(DTYPE_BYTES[dtype], tried) * MEMORY_FACTOR
    if device.startswith("cuda"):
        import torch

        # Memory that torch caches is free for the next model too.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + cached
    else:
        free = ray_utils.estimate_available_memory()
    if needed > free:
        raise UserError(
            f"model {source} needs about {needed / 1e9:.1f} GB in {dtype} and {free / 1e9:.1f} GB are free "
            f"on the {device} of this node; use a smaller dtype, or give the replica more memory"
        )


def _configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a config and all configs nested in it, of which a composite model has several."""
    rest = [config]
    while rest:
        part = rest.pop()
        yield part
        rest += [value for value in part.values() if isinstance(value, dict)]


def _parameters_of(config: dict[str, Any]) -> tuple[float, float]:
    """Return a lower bound and an estimate of the parameters of a transformer with this config.

    The lower bound counts four square projections per layer, an embedding and a head:

        4 · width² · layers + vocabulary · embedding size + labels · width

    ALBERT shares its layers, so it counts its layer groups. The estimate adds parts that many
    architectures have: position vectors, feed-forward layers, and attention heads of any size.
    """

    def number(*names: str) -> float:
        for name in names:
            value = config.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                return float(min(value, 1e60))  # keeps products finite
        return 0.0

    width = number("hidden_size", "d_model", "n_embd", "dim", "emb_dim")
    if not width and "model_type" not in config:  # a table of labels, not a model
        return 0.0, 0.0
    width = width or 768.0  # the default of most model types
    layers = number("num_hidden_groups") or number(
        "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers"
    ) + number("decoder_layers", "num_decoder_layers")
    embedding = number("embedding_size") or width
    inner = number(
        "intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "n_inner", "hidden_dim"
    )
    inner += number("decoder_ffn_dim")
    heads = number("num_attention_heads", "num_heads") * number("head_dim", "d_kv")
    positions = number("max_position_embeddings", "n_positions") + number("type_vocab_size")
    least = 4 * width * width * layers + number("vocab_size") * embedding
    least += number("num_labels") * width
    return least, least + width * (positions + layers * (2 * inner + heads))
