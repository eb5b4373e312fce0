"""Build the tokenizer and the model of a training run from a pretrained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainyard.config import ModelFlags
from trainyard.errors import UserError
from trainyard.models.hub import from_hub, load_config, model_revision, quiet, reserved_positions
from trainyard.models.load import CLASSIFIER, check_shards, special_tokens
from trainyard.models.padding import use_full_attention
from trainyard.models.pickled import with_safetensors
from trainyard.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_tokenizer(config: ModelFlags) -> Any:
    """Load the model's tokenizer, and check that model, tokenizer and `max_length` fit together.

    Raises:
        UserError: The model cannot be loaded, `max_length` does not fit, the tokenizer has no
            padding token, or a token id has no embedding.
    """
    import transformers

    model_config = load_config(config.model_name_or_path)
    # Convert weights here, in the driver, so that its terminal shows the message.
    source, revision = with_safetensors(
        config.model_name_or_path, model_revision(config.model_name_or_path)
    )
    with quiet():
        tokenizer = from_hub(
            config.model_name_or_path,
            lambda: transformers.AutoTokenizer.from_pretrained(
                source,
                revision=revision,
                trust_remote_code=False,
                **special_tokens(CLASSIFIER, model_config),
            ),
        )
    positions = _positions(config.model_name_or_path, model_config, config.max_length)
    if positions is not None and config.max_length > positions:
        raise UserError(
            f"--max-length {config.max_length} is more than the {positions} positions of "
            f"{config.model_name_or_path}; use at most {positions}"
        )
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if config.max_length <= special:
        raise UserError(
            f"--max-length {config.max_length} leaves no room for text next to {special} special tokens; "
            f"use more than {special}"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {config.model_name_or_path} has no padding token; use an encoder "
            "such as bert-base-uncased"
        )
    if not config.grows_vocabulary:
        vectors, tokens = getattr(model_config, "vocab_size", None), vocabulary_size(tokenizer)
        if vectors is not None and tokens > vectors:
            raise UserError(
                f"the tokenizer of {config.model_name_or_path} gives ids up to {tokens - 1} and the model "
                f"knows {vectors} tokens; train with --resize-embeddings, or give the tokenizer that "
                "belongs to the model"
            )
    return tokenizer


def vocabulary_size(tokenizer: Any) -> int:
    """Return the number of token embeddings that a tokenizer needs: its largest id plus 1."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _positions(name: str, settings: Any, wanted: int) -> int | None:
    """Return the maximum tokens of a row, or None without a maximum.

    If `wanted` is near the maximum, positions that no token can use are subtracted; a model without
    weights is built to count them. Otherwise they are included.
    """
    import transformers

    positions: int = getattr(settings, "max_position_embeddings", None) or -1
    if positions < 0:  # XLNet says -1
        return None
    if wanted <= positions - 1 - (getattr(settings, "pad_token_id", None) or 0):
        return positions
    import torch

    with torch.device("meta"):  # no weights, only modules
        model = from_hub(name, lambda: transformers.AutoModel.from_config(settings))
    return positions - reserved_positions(model)


def build_model(
    name: str,
    task: Task,
    revision: str | None = None,
    *,
    seed: int,
    init: Literal["pretrained", "random"] = "pretrained",
    gradient_checkpointing: bool = False,
    vocabulary: int | None = None,
    dropout: float | None = None,
) -> "PreTrainedModel":
    """Load a model with a classification head for `task`, in float32.

    The head is new, unless the checkpoint has one of the same shape.

    Args:
        name: Folder, `package:NAME/FOLDER`, or Hub id.
        task: Task whose labels and problem type define the head.
        revision: Commit of a Hub model, see `model_revision`.
        seed: Seed of all new weights: the head's, or all weights if `init` is `random`.
        init: Initial weights of the encoder.
        gradient_checkpointing: True to recompute activations in the backward pass.
        vocabulary: Minimum number of token embeddings; None keeps the model's number.
        dropout: Probability for every dropout in the model's config; None keeps the config's values.

    Raises:
        UserError: The model cannot be loaded, lacks encoder weights (they would be random), or has no
            dropout to set.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    labels = task.labels or ("score",)
    head: dict[str, Any] = {
        "num_labels": task.num_labels,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": task.problem_type,
    }
    classifier = transformers.AutoModelForSequenceClassification
    if dropout is not None:
        head |= dict.fromkeys(_dropout_names(name, load_config(name)), dropout)
    source, revision = with_safetensors(name, revision)
    with quiet():
        if init == "random":
            model = from_hub(
                name,
                lambda: classifier.from_config(
                    transformers.AutoConfig.from_pretrained(
                        source, revision=revision, trust_remote_code=False, **head
                    ),
                    dtype=torch.float32,
                ),
            )
        else:
            if Path(source).is_dir():
                check_shards(Path(source), name)
            model, info = from_hub(
                name,
                lambda: classifier.from_pretrained(
                    source,
                    revision=revision,
                    dtype=torch.float32,  # a checkpoint saved in bf16 would train in bf16 otherwise
                    use_safetensors=True,
                    trust_remote_code=False,
                    # A checkpoint fine-tuned on another task has a head of another shape.
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **head,
                ),
            )
            _check_encoder(name, model, info)
    use_full_attention(model)
    if vocabulary is not None and vocabulary > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    # Evaluation and serving read the task from the saved config.
    model.config.finetuning_task = task.name
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _dropout_names(name: str, config: Any) -> list[str]:
    """Return the config fields that hold a dropout probability; their names vary by architecture."""
    names = [
        field
        for field, value in config.to_dict().items()
        if "drop" in field
        and "layerdrop" not in field
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ]
    if not names:
        raise UserError(f"model '{name}' has no dropout in its config; leave out --dropout")
    return names


def _check_encoder(name: str, model: Any, info: Any) -> None:
    random = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    encoder = f"{model.base_model_prefix}."
    if lost := sorted(k for k in random if k.startswith(encoder) and "pooler" not in k.split(".")):
        other = f", it has {min(info['unexpected_keys'])}" if info["unexpected_keys"] else ""
        raise UserError(
            f"model '{name}' lacks {len(lost)} weights of its encoder, or has them in another shape "
            f"({', '.join(lost[:3])}{other}); give a model whose weights fit its config.json"
        )
