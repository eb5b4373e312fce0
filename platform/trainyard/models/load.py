"""Load models for inference from a folder or the Hub: check weights, run no code of the model."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainyard.errors import UserError, one_line
from trainyard.models.hub import quiet, reserved_positions
from trainyard.models.padding import use_fixed_hashes, use_full_attention
from trainyard.models.pickled import with_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINED_LENGTH_KEY = "trained_max_length"
"""Key of the value of --max-length in the config.json of an exported model."""

CLASSIFIER = "AutoModelForSequenceClassification"

Dtype = Literal["float32", "bfloat16", "float16"]


def load_model(
    auto_model: str,
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    optional_weights: Sequence[str] = (),
) -> "tuple[PreTrainedModel, Any]":
    """Load a model with its tokenizer, in evaluation mode.

    Evaluation, batch inference, engines and serving load all models with this function. No code of
    the model is run: weights come from safetensors, see `with_safetensors`, and models that need
    their own code are refused. Missing weights, which transformers would fill with random numbers,
    are an error.

    Args:
        auto_model: Name of a class in transformers, such as `AutoModelForSequenceClassification`.
        name: Folder, `package:NAME/FOLDER`, or Hub id.
        dtype: Data type of the weights.
        device: Device of the weights.
        revision: Commit, tag or branch on the Hub.
        optional_weights: Prefixes of weights that may be missing, because the task does not use
            them.

    Returns:
        The model and the tokenizer.

    Raises:
        UserError: The model cannot be loaded, weights are missing or not finite, a token id has no
            embedding, or two ids share a label.
    """
    import torch
    import transformers

    path, revision = with_safetensors(name, revision)
    if Path(path).is_dir():
        check_shards(Path(path), name)
    # Marian's tokenizer recommends a package that it never calls.
    warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
    common = {"trust_remote_code": False, "revision": revision}
    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(path, **common)
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                path, **common, **special_tokens(auto_model, config)
            )
            model, report = getattr(transformers, auto_model).from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                output_loading_info=True,
                **common,
            )
        except Exception as error:  # the reader of a damaged file can raise any exception
            reason = one_line(error, 240) or type(error).__name__
            raise UserError(
                f"model {name} could not be loaded as {auto_model} ({reason}); it must be a folder or "
                "Hub id with config.json, a tokenizer and weights in safetensors, and need no code "
                "from it"
            ) from error
    missing = [
        key for key in sorted(report["missing_keys"]) if not key.startswith(tuple(optional_weights))
    ]
    if missing:
        raise UserError(
            f"model {name} lacks {len(missing)} of the weights that {auto_model} needs "
            f"({', '.join(missing[:3])}); it was not trained for this task: fine-tune it first, or "
            "serve it for another task"
        )
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"model {name}: the weights {key} hold NaN or infinite values, so every answer would "
                "be wrong; train it again with a smaller learning rate or another precision"
            )
    _check_vocabulary(name, model, tokenizer)
    if auto_model.endswith("Classification"):
        _check_labels(name, model)
    use_full_attention(model)
    use_fixed_hashes(model)
    return model.eval().requires_grad_(False).to(device), tokenizer


def _check_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with ids that have no embedding: one such id fails a whole batch.

    Raises:
        UserError: The largest token id has no embedding.
    """
    try:
        vectors = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # CANINE, for example, hashes characters
        return
    last = max(tokenizer.get_vocab().values(), default=-1)
    if vectors is not None and last >= vectors:
        raise UserError(
            f"model {name}: its tokenizer gives ids up to {last} and the model knows {vectors} tokens; "
            "save the tokenizer that it was trained with, or resize_token_embeddings and train"
        )


def _check_labels(name: str, model: "PreTrainedModel") -> None:
    """Refuse a model with one label for two ids: predictions by label would be ambiguous.

    Raises:
        UserError: Two ids have the same label.
    """
    labels: dict[str, int] = {}
    for index, label in sorted((getattr(model.config, "id2label", None) or {}).items()):
        if label in labels:
            raise UserError(
                f"model {name} calls both {labels[label]} and {index} '{label}'; give each id its own "
                "label in id2label of its config.json"
            )
        labels[label] = index


def special_tokens(auto_model: str, config: Any) -> dict[str, bool]:
    """Return tokenizer options that treat special tokens in a text, such as "</s>", as plain text.

    Only encoder-decoder classifiers need the options: they classify by the last end token, so an
    end token inside a text would change the result. Other models get no options.
    """
    pools_by_end = auto_model == CLASSIFIER and getattr(config, "is_encoder_decoder", False)
    return {"split_special_tokens": True} if pools_by_end else {}


def check_shards(folder: Path, name: str) -> None:
    """Refuse an index of weights that names files outside the model's own folder.

    Transformers joins the names in the index to the folder's path, even `../` and absolute paths.

    Raises:
        UserError: An index is not valid, or names a file that is not in `folder`.
    """
    shards = {file.name for file in folder.glob("*.safetensors")}
    for index in folder.rglob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"model {name}: {index.name} is not a valid index of weights; copy it again"
            ) from None
        if named - shards:
            raise UserError(
                f"model {name}: {index.name} names the weights {min(map(repr, named - shards))}, which "
                "are not a safetensors file in the model's own folder; copy the whole model again"
            )


def trained_length(config: Any) -> int | None:
    """Return the value of --max-length that a model was trained with; None if it stores none.

    Base models and models of earlier versions store none.

    Raises:
        UserError: The stored value is not a positive integer.
    """
    found: int | None = getattr(config, TRAINED_LENGTH_KEY, None)
    if found is not None and (type(found) is not int or found < 1):
        raise UserError(
            f"{TRAINED_LENGTH_KEY} in the model's config.json is {repr(found)[:60]}, expected a positive "
            "number of tokens; correct it, or remove it for the model's own limit"
        )
    return found


def max_tokens(model: Any, tokenizer: Any) -> int | None:
    """Return the maximum tokens of an input, special tokens included; None without a maximum."""
    limits = []
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - reserved_positions(model))
    if tokenizer.model_max_length < 1_000_000:  # larger: not set
        limits.append(tokenizer.model_max_length)
    return min(limits, default=None)
