"""Tokenizers and classifiers from a model's files. The only user of Auto*."""

from typing import TYPE_CHECKING, Any, Literal

from trainyard.errors import UserError
from trainyard.flags import ModelFlags
from trainyard.models.hub import (
    from_hub,
    load_config,
    model_revision,
    quiet,
    reserved_positions,
    resolve_model,
)
from trainyard.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_tokenizer(config: ModelFlags) -> Any:
    """The model's tokenizer; refuses a `max_length` that the model has no positions for."""
    import transformers

    model_config = load_config(config.model_name_or_path)
    with quiet(transformers):
        tokenizer = from_hub(
            config.model_name_or_path,
            lambda: transformers.AutoTokenizer.from_pretrained(
                resolve_model(config.model_name_or_path),
                revision=model_revision(config.model_name_or_path),
                trust_remote_code=False,
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
            f"--max-length {config.max_length} leaves no room for text beside {special} special tokens; "
            f"use more than {special}"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {config.model_name_or_path} has no padding token; use an encoder "
            "such as bert-base-uncased"
        )
    return tokenizer


def _positions(name: str, settings: Any, wanted: int) -> int | None:
    """Positions that texts can use, if `settings` limit them; exact where `wanted` comes near."""
    import transformers

    positions: int = getattr(settings, "max_position_embeddings", None) or -1
    if positions < 0:  # XLNet says -1
        return None
    if wanted <= positions - 1 - (getattr(settings, "pad_token_id", None) or 0):
        return positions
    import torch

    with torch.device("meta"):  # no weights: only what the model is made of
        model = from_hub(name, lambda: transformers.AutoModel.from_config(settings))
    return positions - reserved_positions(model)


def load_classifier(name: str) -> Any:
    """A fine-tuned classifier as it is, in fp32.

    Raises:
        UserError: when it has no head: transformers would make a random one and answer nonsense.
    """
    import torch
    import transformers

    with quiet(transformers):
        model, info = from_hub(
            name,
            lambda: transformers.AutoModelForSequenceClassification.from_pretrained(
                resolve_model(name),
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            ),
        )
    if info["missing_keys"]:
        raise UserError(
            f"model {name} is not a fine-tuned classifier ({len(info['missing_keys'])} of its weights "
            f"are missing, such as {sorted(info['missing_keys'])[0]}); give the model/ folder of a run"
        )
    return model


def build_model(
    name: str,
    task: Task,
    revision: str | None = None,
    *,
    seed: int,
    init: Literal["pretrained", "random"] = "pretrained",
    gradient_checkpointing: bool = False,
) -> "PreTrainedModel":
    """Load the encoder with a fresh head for `task`, in fp32.

    `revision` is the commit of a Hub model, see `model_revision`. `seed` is that of all new weights:
    of the head, or of the whole model where `init` is random.

    Raises:
        UserError: The weights are not those of the encoder, which would start from random ones.
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
    with quiet(transformers):
        if init == "random":
            model = from_hub(
                name,
                lambda: classifier.from_config(
                    transformers.AutoConfig.from_pretrained(
                        resolve_model(name), revision=revision, trust_remote_code=False, **head
                    ),
                    dtype=torch.float32,
                ),
            )
        else:
            model, info = from_hub(
                name,
                lambda: classifier.from_pretrained(
                    resolve_model(name),
                    revision=revision,
                    dtype=torch.float32,  # a checkpoint saved in bf16 would train in bf16 otherwise
                    use_safetensors=True,
                    trust_remote_code=False,
                    # A fine-tuned checkpoint of another task brings a head of another shape.
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **head,
                ),
            )
            _check_encoder(name, model, info)
    # The task travels with the weights, so that a program that loads them knows what they answer.
    model.config.finetuning_task = task.name
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _check_encoder(name: str, model: Any, info: Any) -> None:
    """Only the head may start from random weights, and a pooler, which not every checkpoint has."""
    random = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    encoder = f"{model.base_model_prefix}."
    if lost := sorted(k for k in random if k.startswith(encoder) and "pooler" not in k.split(".")):
        other = f", it has {min(info['unexpected_keys'])}" if info["unexpected_keys"] else ""
        raise UserError(
            f"model '{name}' lacks {len(lost)} weights of its encoder, or has them in another shape "
            f"({', '.join(lost[:3])}{other}); give a model whose weights fit its config.json"
        )
