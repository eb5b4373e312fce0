"""Where a model comes from: a folder on disk, checked before anything of it is built, and its story."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainyard.errors import UserError
from trainyard.inference import PREDICTORS
from trainyard.models import resolve_model
from trainyard.serving.options import Version

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""Files that are taken from the Hub: weights in safetensors, configs, vocabularies; no code."""

STORY = ("name", "identity", "data_fingerprint", "versions", "status")
"""What a run's record tells about its model."""

UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, OverflowError, RecursionError,
)  # fmt: skip
"""What reading a broken header can raise."""


def locate(version: Version, max_parameters: float) -> tuple[Path, dict[str, Any]]:
    """The folder of a version, and what is known about it: source, revision, run, metrics.

    Raises:
        UserError: when it is missing, holds no safetensors, or describes a model that is larger
            than its weights: transformers would build it first, and fill it with random numbers.
    """
    name = version.source
    if Path(name).expanduser().joinpath("run.json").is_file():
        name = str(Path(name).expanduser() / "model")  # a run folder stands for its model
    path = resolve_model(name)
    folder = Path(path) if Path(path).is_dir() else _from_hub(path, version.revision)
    _check_size(folder, max_parameters, version.source)
    about: dict[str, Any] = {"source": version.source, "revision": version.revision}
    run = _read_json(folder.parent / "run.json")
    if run and folder.name == "model":
        about["run"] = {key: run[key] for key in STORY if key in run} | {
            "config": run.get("config", {})
        }
    metrics = _read_json(folder / "metrics.json")
    if metrics:
        about["metrics"] = metrics
    return folder, about


def task_of(folder: Path) -> str:
    """The task that a model's config says it is for: the first predictor for its architecture.

    Raises:
        UserError: when there is none.
    """
    architectures = _read_json(folder / "config.json").get("architectures") or []
    for task, predictor in PREDICTORS.items():
        if any(str(name).endswith(predictor.architectures) for name in architectures):
            return task
    raise UserError(
        f"{folder} is a model of kind {', '.join(map(str, architectures)) or 'unknown'}, which none of "
        f"the tasks takes; set `task` to one of {', '.join(PREDICTORS)} if it fits"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=PATTERNS)
        )
    except Exception as error:  # its errors have no common base but Exception
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model '{name}' is no folder here and could not be taken from the Hub ({reason}); check "
            "`source`"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_size(folder: Path, most: float, source: str) -> None:
    config = _read_json(folder / "config.json")
    if not config:
        raise UserError(f"model {source}: its config.json is missing or no valid JSON")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"model {source}: there are no weights in safetensors; pickled weights (.bin, .pt) can run "
            "code and are never loaded: convert them with transformers' save_pretrained"
        )
    stored = sum(_parameters_in(file, source) for file in files)
    estimates = [_parameters_of(part) for part in _configs(config)]
    described, perhaps = (sum(each) for each in zip(*estimates, strict=True))
    if max(stored, described) > most:
        raise UserError(
            f"model {source} has {max(stored, described):.3g} parameters, at most {most:.3g} are "
            "loaded; set max_parameters to load it"
        )
    if described > 2 * stored + 1e6 or perhaps > 2 * stored + 1e8:
        raise UserError(
            f"model {source}: config.json describes about {perhaps:.3g} parameters and the weights "
            f"hold {stored:.3g}; these files do not belong together"
        )


def _parameters_in(file: Path, source: str) -> int:
    """Numbers in a safetensors file, by its header alone (8 bytes of length, then JSON)."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100_000_000:  # the format's own limit
                raise ValueError("its header is too long")
            header = json.loads(stream.read(length))
        total = 0
        for name, tensor in header.items():
            if name != "__metadata__":
                numbers = 1
                for size in tensor["shape"]:
                    numbers *= int(size)
                total += int(float(numbers))  # more than a float holds, no file does
    except UNREADABLE as error:
        raise UserError(
            f"model {source}: {file.name} is no valid safetensors file ({error}); copy it again"
        ) from None
    return total


def _configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config and those inside it: models of several parts have one for each."""
    rest = [config]
    while rest:
        found = rest.pop()
        yield found
        rest += [value for value in found.values() if isinstance(value, dict)]


def _parameters_of(config: dict[str, Any]) -> tuple[float, float]:
    """Parameters of a transformer with this config, roughly: surely, and if its kind has them.

    Surely: layers of four square projections, an embedding, a head: 4 h^2 layers + (vocabulary +
    labels) h. ALBERT shares its layers, so it counts one. Many kinds, but not all, learn a vector
    for each position, or have square feed-forward layers and heads of any size.
    """

    def number(*names: str) -> float:
        for name in names:
            value = config.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                return float(min(value, 1e60))  # a product of several is no infinity
        return 0.0

    width = number("hidden_size", "d_model", "n_embd", "dim", "emb_dim")
    if not width and "model_type" not in config:  # a table of labels, or such
        return 0.0, 0.0
    width = width or 768.0  # what most kinds have that do not say
    layers = number("num_hidden_groups") or number(
        "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers"
    ) + number("decoder_layers", "num_decoder_layers")
    embedding = number("embedding_size") or width
    inner = number(
        "intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "n_inner", "hidden_dim"
    )
    inner += number("decoder_ffn_dim")
    heads = number("num_attention_heads", "num_heads") * number("head_dim", "d_kv")
    places = number("max_position_embeddings", "n_positions") + number("type_vocab_size")
    surely = 4 * width * width * layers + number("vocab_size") * embedding
    surely += number("num_labels") * width
    return surely, surely + width * (places + layers * (2 * inner + heads))
