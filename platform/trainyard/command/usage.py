"""Layout of a job's --help: examples, description, then the flags in titled boxes."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_type_hints

from trainyard.config import field_help

Config = TypeVar("Config")

GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": (
        "train_file", "dataset_name", "dataset_config_name", "validation_file", "test_file",
        "input_file", "task", "data_dir", "splits",
        "text_column", "text_pair_column", "label_column", "problem_type", "drop_labels",
        "merge_similar_labels", "delimiter", "encoding", "test_share", "data_seed",
        "split_version", "max_train_samples",
    ),
    "model": (
        "model_name_or_path", "revision", "max_length", "init", "resize_embeddings", "model_task",
        "engine", "dtype", "threads",
    ),
    "training": (
        "num_train_epochs", "max_steps", "learning_rate", "train_batch_size",
        "per_device_train_batch_size", "per_device_train_tokens", "weight_decay", "warmup_steps",
        "lr_scheduler_type", "max_grad_norm", "mixed_precision", "gradient_checkpointing",
        "pad_to_multiple_of", "pad_to_max_length", "seed", "loop", "eval_steps", "save_steps",
        "early_stopping_patience", "logging_steps", "per_device_eval_batch_size",
    ),
    "worker": (
        "num_workers", "use_gpu", "resources_per_worker", "strategy", "zero_stage",
        "address", "label_selector", "max_failures", "verbose",
    ),
    "output": ("run_name", "storage_path", "fresh", "ledger", "output_file", "output"),
}  # fmt: skip
"""Title of a box in --help -> config fields in this box, in order."""

DEFINED_BY = {
    "FileFlags": "data", "DataFlags": "data", "EvaluatedRows": "data", "ModelFlags": "model",
    "ScoringFlags": "model", "TrainConfig": "training", "ClusterFlags": "worker",
    "WorkerFlags": "worker", "StorageFlags": "output", "RunFlags": "output",
}  # fmt: skip
"""Class -> box of the fields that it defines and GROUPS omits. Other fields precede all boxes."""


def grouped(config: type[Any]) -> type[Any]:
    """Build the type that tyro parses: a nested dataclass for each box of `config`'s fields."""
    import tyro

    home = {name: title for title, names in GROUPS.items() for name in names}
    order = {name: place for place, name in enumerate(home)}
    hints, words = get_type_hints(config, include_extras=True), field_help(config)
    boxes: dict[str, list[Any]] = {"": [], **{title: [] for title in GROUPS}}
    for field in sorted(
        dataclasses.fields(config), key=lambda field: order.get(field.name, len(order))
    ):
        about = tyro.conf.arg(
            name=field.name.replace("_", "-"),
            prefix_name=False,
            help=words.get(field.name),
            metavar="FILE" if _is_positional(hints[field.name]) else None,
        )
        kind = getitem(Annotated, (hints[field.name], about))
        missing = field.default is dataclasses.MISSING
        default = dataclasses.field() if missing else dataclasses.field(default=field.default)
        box = home.get(field.name) or DEFINED_BY.get(_definer(config, field.name), "")
        boxes[box].append((field.name, kind, default))
    groups = [(title, _plain(title, fields)) for title, fields in boxes.items() if title and fields]
    found: type[Any] = dataclasses.make_dataclass(
        config.__name__, [*boxes[""], *groups], kw_only=True
    )
    return found


def with_words(kind: type[Any], words: Iterable[str]) -> type[Any]:
    """Build the type for shell completion: `kind`, the flags of `run_job`, and first words.

    Args:
        kind: Type that tyro parses; `object` for a command without a config.
        words: First arguments that the command accepts instead of flags.
    """
    import tyro

    more: list[Any] = []
    if kind is not object:
        flag = getitem(Annotated, (bool, tyro.conf.FlagCreatePairsOff))
        more += [("config", Path | None, dataclasses.field(default=None))]
        more += [("json", flag, dataclasses.field(default=False))]
    verbs = [
        getitem(Annotated, (dataclasses.make_dataclass("Verb", []), tyro.conf.subcommand(word)))
        for word in words
    ]
    if verbs:
        unprefixed = (getitem(Union, tuple(verbs)), tyro.conf.arg(name=""))
        more += [("verb", getitem(Annotated, unprefixed), dataclasses.field())]
    bases = () if kind is object else (kind,)
    found: type[Any] = dataclasses.make_dataclass(kind.__name__, more, bases=bases, kw_only=True)
    return found


def _definer(config: type[Any], name: str) -> str:
    """Return the name of the most basic class of `config` that declares the field `name`."""
    return next(
        base.__name__
        for base in reversed(config.__mro__)
        if name in vars(base).get("__annotations__", {})
    )


def has_positional(config: type[Any]) -> bool:
    """Return whether a field of the config is given without its flag."""
    return any(map(_is_positional, get_type_hints(config, include_extras=True).values()))


def _is_positional(hint: Any) -> bool:
    import tyro

    return tyro.conf.Positional in get_args(hint)


def _plain(title: str, fields: list[Any]) -> Any:
    import tyro

    kind = dataclasses.make_dataclass(title, fields, kw_only=True)
    return Annotated[kind, tyro.conf.arg(help="", prefix_name=False)]


def flattened(values: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        found |= flattened(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return found


def description(config: type[Any], prog: str | None, examples: Sequence[str]) -> str:
    """Build the text above the flags: examples if there are any, then the class's docstring."""
    about = inspect.cleandoc(vars(config)["__doc__"] or "")
    command = (prog or "").partition(" ")[0]
    lines = "".join(f"  {command} {example}\n" for example in examples)
    more = "--config FILE.yaml reads more flags from a file; --json prints the result as JSON."
    return f"Examples:\n{lines}\n{about}\n\n{more}" if examples else about
