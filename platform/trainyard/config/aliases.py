"""Translation of transformers' `TrainingArguments` into Trainyard flags.

The arguments come from the command line, --config files or Python keywords. An argument without an
equivalent flag is an error that names the flag to use instead.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from trainyard.errors import UserError


def flag(name: str) -> str:
    """Return the flag of a field: `--learning-rate` for `learning_rate`."""
    return f"--{name.replace('_', '-')}"


class UnknownField(UserError, TypeError):  # noqa: N818 (a sentence for the user, like its parent)
    """Error for a keyword that a config does not accept."""


@dataclass(frozen=True)
class Alias:
    """Translation of another library's setting: flags for supported values, an error for others."""

    sentence: str = ""
    """Advice in the error for an unsupported value, which may hold `{value}`. Default: the list of
    supported values."""
    same_as: str = ""
    """Trainyard flag that takes any value unchanged."""
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Flags by lower-case value; an empty tuple for a value that matches Trainyard's behavior."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """By lower-case value, a flag that the user must give in addition."""


YES: Mapping[str, tuple[str, ...]] = {"true": ()}
NO: Mapping[str, tuple[str, ...]] = {"false": ()}

ADAMW = "the optimizer is torch's fused AdamW with its default betas; leave this flag out"
FOLDERS = "--storage-path is the folder of all runs, and --run-name the folder of this one"
CHECKPOINTS = (
    "a checkpoint is written at every evaluation and every --save-steps, and old ones are deleted"
)
EVALUATIONS = "a run evaluates after every epoch, or every --eval-steps"
BEST = "model/ holds the epoch with the best score of the task; leave this flag out"
RESUMING = "the same command resumes a run, and --fresh starts it anew"
PRECISION = "use --mixed-precision, which holds for training and evaluation"
TRACKERS = "use --report-to; TensorBoard's files are in the run's tensorboard/"
SHARING = "use --strategy (ddp, fsdp, deepspeed) with --num-workers, and --zero-stage"
LOADERS = "rows come from a memory-mapped table, without data loaders; leave this flag out"
HUB = "--push-to-hub OWNER/NAME uploads model/ at the end of a run; leave this flag out"
COMPILE = "training does not compile the model; leave this flag out"

ALIASES: dict[str, Alias] = {
    "bf16": Alias(values={"true": ("--mixed-precision", "bf16"), **NO}),
    "fp16": Alias(values={"true": ("--mixed-precision", "fp16"), **NO}),
    "bf16_full_eval": Alias(PRECISION, values=NO),
    "fp16_full_eval": Alias(PRECISION, values=NO),
    "tf32": Alias(PRECISION, values=NO),
    "optim": Alias(ADAMW, values={"adamw_torch": (), "adamw_torch_fused": ()}),
    "optim_args": Alias(ADAMW),
    "optim_target_modules": Alias(ADAMW),
    "adam_beta1": Alias(ADAMW, values={"0.9": ()}),
    "adam_beta2": Alias(ADAMW, values={"0.999": ()}),
    "adam_epsilon": Alias(ADAMW, values={"1e-08": (), "1e-8": ()}),
    "warmup_ratio": Alias(same_as="--warmup-steps"),
    "max_seq_length": Alias(same_as="--max-length"),
    "task_name": Alias(same_as="--task"),
    "dataset_config": Alias(same_as="--dataset-config-name"),
    "per_gpu_train_batch_size": Alias(same_as="--per-device-train-batch-size"),
    "per_gpu_eval_batch_size": Alias(same_as="--per-device-eval-batch-size"),
    "auto_find_batch_size": Alias("use --per-device-train-batch-size", values=NO),
    "use_cpu": Alias(values={"true": ("--no-use-gpu",), **NO}),
    "no_cuda": Alias(values={"true": ("--no-use-gpu",), **NO}),
    "activation_checkpointing": Alias("use --gradient-checkpointing", values=NO),
    "activation_checkpointing_kwargs": Alias("use --gradient-checkpointing"),
    "gradient_checkpointing_kwargs": Alias("use --gradient-checkpointing"),
    "output_dir": Alias(FOLDERS),
    "overwrite_output_dir": Alias(RESUMING, values=NO),
    "resume_from_checkpoint": Alias(RESUMING, values=YES),
    "ignore_data_skip": Alias(RESUMING, values=NO),
    "do_train": Alias("`trainyard eval` evaluates a model without training", values=YES),
    "do_eval": Alias(EVALUATIONS, values=YES),
    "do_predict": Alias("`trainyard predict` predicts the rows of a file", values=NO),
    "eval_strategy": Alias(EVALUATIONS, values={"epoch": (), "steps": ()}, needs={"steps": "--eval-steps"}),
    "save_strategy": Alias(CHECKPOINTS, values={"epoch": (), "steps": ()}, needs={"steps": "--save-steps"}),
    "save_total_limit": Alias(CHECKPOINTS),
    "save_only_model": Alias(CHECKPOINTS, values=NO),
    "save_on_each_node": Alias(CHECKPOINTS, values=NO),
    "enable_jit_checkpoint": Alias(CHECKPOINTS, values=NO),
    "restore_callback_states_from_checkpoint": Alias(CHECKPOINTS, values=NO),
    "logging_strategy": Alias("use --logging-steps", values={"steps": ()}),
    "logging_first_step": Alias("use --logging-steps 1", values=NO),
    "load_best_model_at_end": Alias(BEST, values=YES),
    "greater_is_better": Alias(BEST),
    "logging_dir": Alias(TRACKERS),
    "hub_model_id": Alias(same_as="--push-to-hub"),
    "full_determinism": Alias(values={"true": (), **NO}),
    "group_by_length": Alias("rows of similar length share a batch; leave this flag out", values=YES),
    "train_sampling_strategy": Alias(
        "an epoch is a seeded permutation, in which rows of similar length share a batch",
        values={"random": (), "group_by_length": ()},
    ),
    "fsdp": Alias(SHARING),
    "fsdp_config": Alias(SHARING),
    "deepspeed": Alias("use --use-gpu --strategy deepspeed --deepspeed-config {value}"),
    "local_rank": Alias("use --num-workers", values={"-1": ()}),
    "disable_tqdm": Alias("without a terminal there is no progress bar; leave this flag out", values=NO),
    "log_level": Alias("use --verbose for Ray's logs", values={"passive": ()}),
}  # fmt: skip
ALIASES["evaluation_strategy"] = ALIASES["eval_strategy"]

FAMILIES: dict[str, str] = {
    "dataloader_": LOADERS,
    "ddp_": "gradients add up in one order at any number of workers; leave this flag out",
    "hub_": HUB,
    "push_to_hub_": HUB,
    "torch_compile": COMPILE,
    "trackio_": TRACKERS,
}
"""Advice in errors, by prefix of a setting's name."""

WITHOUT_COUNTERPART = {
    "accelerator_config", "average_tokens_across_devices", "batch_eval_metrics", "debug",
    "eval_accumulation_steps", "eval_delay", "eval_do_concat_batches", "eval_on_start",
    "eval_use_gather_object", "include_for_metrics", "include_num_input_tokens_seen",
    "label_names", "length_column_name", "liger_kernel_config", "log_level_replica",
    "log_on_each_node", "logging_nan_inf_filter", "lr_scheduler_kwargs", "neftune_noise_alpha",
    "parallelism_config", "prediction_loss_only", "project", "remove_unused_columns",
    "skip_memory_metrics", "torch_empty_cache_steps", "use_cache", "use_liger_kernel",
}  # fmt: skip


def find_alias(name: str) -> Alias | None:
    if name in WITHOUT_COUNTERPART:
        return Alias("it has no counterpart here; leave this flag out")
    prefix = next((prefix for prefix in FAMILIES if name.startswith(prefix)), None)
    return ALIASES.get(name) or (Alias(FAMILIES[prefix]) if prefix else None)


def alias_for(name: str, fields: Collection[str]) -> Alias | None:
    """Return the translation of a setting for a config with these `fields`; None for none.

    A config without `learning_rate`, which does not train, only accepts other names of these fields.
    """
    alias = find_alias(name)
    if alias is None or "learning_rate" in fields:
        return alias
    return alias if alias.same_as.removeprefix("--").replace("-", "_") in fields else None


def translate(config: type[Any], args: Sequence[str]) -> list[str]:
    """Replace names of `TrainingArguments` in `args` with Trainyard flags, see `alias_for`.

    Raises:
        UserError: A setting has no equivalent flag, or contradicts another flag.
    """
    names = {field.name for field in dataclasses.fields(config)}
    found = list(_translated(args, names))
    return _accumulation(found, config) if "learning_rate" in names else found


def keywords(config: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Replace names of `TrainingArguments` among the keywords of a config, as `translate` does.

    Raises:
        UnknownField: A keyword is neither a field nor a known setting; the message suggests a field.
        UserError: A setting has no equivalent field, or contradicts another keyword.
    """
    names = [field.name for field in dataclasses.fields(config)]
    found = {name: value for name, value in given.items() if name in names}
    args: list[str] = []
    for name in given.keys() - found.keys():
        steps = name == "gradient_accumulation_steps" and "learning_rate" in names
        if not steps and alias_for(name, names) is None:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(names)}"
            raise UnknownField(f"{config.__name__} has no field '{name}'; {hint}")
        args.append(f"{flag(name)}={given[name]}")
    spelled = [f"{flag(name)}={value}" for name, value in found.items() if value is not None]
    meant = [arg for arg in translate(config, [*spelled, *args]) if arg not in spelled]
    values = {str(value): value for value in given.values()}
    for arg, following in itertools.pairwise([*meant, "--"]):
        name, _, value = arg.removeprefix("--").replace("-", "_").partition("=")
        value = value or ("" if following.startswith("--") else following)
        if not arg.startswith("--"):
            continue
        if value:
            found[name] = values.get(value, int(value) if value.isdecimal() else value)
        else:
            found[name.removeprefix("no_")] = not name.startswith("no_")
    return found


def _translated(args: Sequence[str], names: set[str]) -> Iterator[str]:
    position = 0
    while position < len(args):
        arg = args[position]
        position += 1
        spelled, equals, value = arg.partition("=")
        name = spelled.removeprefix("--").replace("-", "_")
        negated = name.startswith("no_") and name not in ALIASES
        name = name.removeprefix("no_") if negated else name
        known = name in names or not spelled.startswith("--")
        alias = None if known else alias_for(name, names)
        if alias is None:
            yield arg
            continue
        if negated:
            value = "false"
        elif not equals:
            value = "true"
            if position < len(args) and not args[position].startswith("--"):
                value = args[position]
                position += 1
        yield from meaning(flag(name), alias, value, args)


def meaning(
    name: str, alias: Alias, value: str, args: Sequence[str] = (), source: str = "TrainingArguments"
) -> Sequence[str]:
    """Return the flags equivalent to a value of a setting; none for `none` and `null`.

    Args:
        name: Name of the setting for the error.
        alias: Translation of the setting.
        value: Value as written by the user.
        args: All arguments, among which flags in `alias.needs` are searched.
        source: Library or command that defines the setting, for the error.

    Raises:
        UserError: The value has no equivalent flag, or a flag in `alias.needs` is missing.
    """
    if value.lower() in ("none", "null"):  # None, the default of TrainingArguments
        return ()
    if alias.same_as:
        return (alias.same_as, value)
    flags = alias.values.get(value.lower())
    needed = alias.needs.get(value.lower())
    if flags is None or (needed and _last(args, needed) is None):
        accepted = " or ".join(alias.values)
        sentence = alias.sentence.replace("{value}", value) or f"give it {accepted}"
        raise UserError(f"{name} {value} is a setting of {source}: {sentence}")
    return flags


def _accumulation(args: list[str], config: type[Any]) -> list[str]:
    """Replace --gradient-accumulation-steps with the implied --train-batch-size on one worker."""
    steps = _last(args, "--gradient-accumulation-steps")
    if steps is None:
        return args
    size = _last(args, "--per-device-train-batch-size") or config.per_device_train_batch_size
    workers, batch = _last(args, "--num-workers") or "1", _last(args, "--train-batch-size")
    if size is None:  # in a suite, the recipe of each task sets it
        raise UserError(
            "--gradient-accumulation-steps needs --per-device-train-batch-size here; give both, or "
            "--train-batch-size"
        )
    if not (steps.isdecimal() and int(steps) and str(size).isdecimal()):
        raise UserError(f"--gradient-accumulation-steps is {steps}; it must be at least 1")
    if batch is not None:
        raise UserError(
            f"--gradient-accumulation-steps {steps} and --train-batch-size {batch} both set the rows of "
            "a step; leave out the first, which is train_batch_size / per_device_train_batch_size"
        )
    if workers != "1":
        raise UserError(
            f"--gradient-accumulation-steps {steps} with --num-workers {workers}: a batch here is global, "
            "so that it does not change with the workers; give --train-batch-size, which for N processes "
            f"of Trainer is N x {int(steps) * int(size)}"
        )
    rest = _without(args, "--gradient-accumulation-steps")
    return [*rest, f"--train-batch-size={int(steps) * int(size)}"]


def _last(args: Sequence[str], wanted: str) -> str | None:
    found = None
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") == wanted:
            found = value if equals else following
    return found


def _without(args: Sequence[str], name: str) -> Iterator[str]:
    rest = iter(args)
    for arg in rest:
        spelled, equals, _ = arg.partition("=")
        if spelled.replace("_", "-") != name:
            yield arg
        elif not equals:
            next(rest, None)
