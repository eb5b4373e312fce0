"""A user's DeepSpeed JSON: check the keys that flags control, and merge the others."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.errors import UserError

Json = dict[str, Any]


@dataclass(frozen=True)
class Owned:
    """Key that flags control: accepted if it agrees with the flags, never passed to DeepSpeed."""

    agrees: Callable[[Any, Any], bool]
    """Called with a `TrainConfig` and the key's value; returns whether the two agree."""
    instead: str
    """Advice in the error: a flag, with `{value}` for the key's value, or why to delete the key."""


def _field(name: str, instead: str) -> Owned:
    return Owned(lambda config, value: value == getattr(config, name), instead)


def _only(only: Any, instead: str) -> Owned:
    return Owned(lambda _, value: value == only, instead)


def _precision(name: str) -> Owned:
    return Owned(
        lambda config, value: value == (config.mixed_precision == name),
        "use --mixed-precision fp16, bf16 or no",
    )


def _is_count(least: int) -> Callable[[Any, Any], bool]:
    return lambda _, value: type(value) is int and value >= least


OFFLOAD = "use --zero-offload cpu or none"
PARAMETERS = "use --strategy fsdp --fsdp-offload"
LEARNING_RATE = "use --learning-rate {value}"
ADAMW = "delete it: the optimizer is torch's AdamW with its defaults"
ENDS = "delete it: warm-up begins, and a schedule ends, at 0"
SCHEDULES = {
    "WarmupLR": "constant_with_warmup",
    "WarmupDecayLR": "linear",
    "WarmupCosineLR": "cosine",
}
OWNED: dict[str, Owned] = {
    "train_batch_size": _field("train_batch_size", "use --train-batch-size {value}"),
    "train_micro_batch_size_per_gpu": _field(
        "per_device_train_batch_size", "use --per-device-train-batch-size {value}"
    ),
    "gradient_accumulation_steps": Owned(
        lambda c, value: value == c.micro_batches_per_step / c.worker_range()[1],
        "use --per-device-train-batch-size of --train-batch-size / ({value} x --num-workers)",
    ),
    "gradient_clipping": _field("max_grad_norm", "use --max-grad-norm {value}"),
    "fp16.enabled": _precision("fp16"),
    "fp16.loss_scale": _only(0, "delete it: the loss scale is dynamic"),
    "fp16.initial_scale_power": Owned(_is_count(0), "give a whole number"),
    "fp16.loss_scale_window": Owned(_is_count(1), "give a whole number from 1"),
    "fp16.hysteresis": _only(1, "delete it: each overflow halves the loss scale"),
    "fp16.min_loss_scale": _only(0, "delete it: 20 overflows in a row end the run instead"),
    "bf16.enabled": _precision("bf16"),
    "amp.enabled": _precision("amp"),
    "torch_autocast.enabled": _precision("torch_autocast"),
    "zero_optimization.stage": _field("zero_stage", "use --zero-stage {value}"),
    "zero_optimization.cpu_offload": Owned(
        lambda c, value: value == (c.zero_offload == "cpu"), OFFLOAD
    ),
    "zero_optimization.offload_optimizer.device": _field("zero_offload", OFFLOAD),
    "zero_optimization.cpu_offload_params": _only(False, PARAMETERS),
    "zero_optimization.offload_param.device": _only("none", PARAMETERS),
    "optimizer.type": Owned(
        lambda _, value: str(value).lower() in ("adam", "adamw"),
        "delete `optimizer`: it is torch's AdamW",
    ),
    "optimizer.params.lr": _field("learning_rate", LEARNING_RATE),
    "optimizer.params.weight_decay": _field("weight_decay", "use --weight-decay {value}"),
    "optimizer.params.betas": _only([0.9, 0.999], ADAMW),
    "optimizer.params.eps": _only(1e-8, ADAMW),
    "optimizer.params.adam_w_mode": _only(True, ADAMW),
    "optimizer.params.bias_correction": _only(True, ADAMW),
    "optimizer.params.torch_adam": Owned(lambda *_: True, ""),
    "scheduler.type": Owned(
        lambda c, value: SCHEDULES.get(value) == c.lr_scheduler_type,
        "use --lr-scheduler-type: "
        + ", ".join(f"{ours} is {theirs}" for theirs, ours in SCHEDULES.items()),
    ),
    "scheduler.params.warmup_max_lr": _field("learning_rate", LEARNING_RATE),
    "scheduler.params.warmup_num_steps": _field("warmup_steps", "use --warmup-steps {value}"),
    "scheduler.params.total_num_steps": _field("max_steps", "use --max-steps {value}"),
    "scheduler.params.warmup_type": _only("linear", "delete it: warm-up is linear"),
    "scheduler.params.warmup_min_lr": _only(0, ENDS),
    "scheduler.params.warmup_min_ratio": _only(0, ENDS),
    "scheduler.params.cos_min_ratio": _only(0, ENDS),
}
"""Controlled keys by dotted path, such as `fp16.enabled`."""
NOWHERE = Owned(lambda *_: False, "delete it: it has no counterpart here")
SECTIONS = ("optimizer", "scheduler", "fp16", "bf16", "amp", "torch_autocast")
"""Sections that are never passed to DeepSpeed.

A key outside `OWNED` is refused, unless it is false or the precision of its section is off.
"""
DROPPED = (*SECTIONS, "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")


def read_deepspeed_json(source: str) -> str:
    """Return DeepSpeed settings as JSON text with sorted keys: equal settings give equal texts.

    Args:
        source: Path of a JSON file, or JSON text that starts with `{`.

    Raises:
        UserError: The file cannot be read, is from `accelerate config`, or holds no JSON object.
    """
    try:
        text = source if source.startswith("{") else Path(source).read_text(encoding="utf-8")
        if "distributed_type" in text:
            raise UserError(
                f"--deepspeed-config {source} is a file of `accelerate config`; give it to --config"
            )
        found = json.loads(text)
    except OSError as error:
        raise UserError(
            f"--deepspeed-config {source} cannot be read ({error.strerror}); give the path of a JSON file"
        ) from error
    except ValueError as error:
        raise UserError(f"--deepspeed-config {source} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"--deepspeed-config {source} must hold a JSON object, not {found!r}")
    return json.dumps(found, sort_keys=True)


def check_deepspeed_json(config: Any) -> None:
    """Check that the DeepSpeed settings of a `TrainConfig` agree with its flags.

    Raises:
        UserError: Keys contradict the flags or have no counterpart; the message lists them.
    """
    theirs = _without_auto(json.loads(config.deepspeed_config or "{}"))
    odd = []
    for path, value in leaves(theirs):
        section, _, key = path.partition(".")
        # The other keys of a section have no effect while its precision is off.
        idle = (
            section in SECTIONS[2:]
            and key not in ("", "enabled")
            and config.mixed_precision != section
        )
        owned = OWNED.get(path)
        if owned is None and section in SECTIONS and value is not False:
            owned = NOWHERE
        if owned and not idle and not owned.agrees(config, value):
            odd.append(f"{path} ({owned.instead.format(value=value)})")
    if odd:
        raise UserError(
            f"--deepspeed-config sets what flags set here: {', '.join(odd)}; keys that agree with the "
            "flags may stay"
        )


def scaler_arguments(source: str | None) -> dict[str, float]:
    """Return keyword arguments for torch's GradScaler from a user's JSON text `source`."""
    fp16 = _without_auto(json.loads(source or "{}")).get("fp16")
    found: dict[str, float] = {}
    if not isinstance(fp16, dict):  # absent, or false
        return found
    if "initial_scale_power" in fp16:
        found["init_scale"] = 2.0 ** fp16["initial_scale_power"]
    if "loss_scale_window" in fp16:
        found["growth_interval"] = fp16["loss_scale_window"]
    return found


def merge_deepspeed_json(ours: Json, source: str | None) -> Json:
    """Return `ours` updated with the keys of a user's JSON text that no flag controls."""
    theirs = _without_auto(json.loads(source or "{}"))
    for path in (*OWNED, *DROPPED):
        *sections, key = path.split(".")
        if isinstance(inside := _at(theirs, ".".join(sections)), dict):
            inside.pop(key, None)
    return _over(ours, theirs)


def leaves(settings: Mapping[str, Any], sections: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every setting in nested sections; `sections` prefixes paths."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{sections}{key}.")
        else:
            yield f"{sections}{key}", value


def _at(settings: Any, path: str) -> Any:
    for key in path.split(".") if path else ():
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def _without_auto(settings: Json) -> Json:
    """Drop `auto` values, which Hugging Face's integrations fill in."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value != "auto"
    }


def _over(ours: Json, theirs: Json) -> Json:
    both = {
        key: _over(value, theirs[key])
        if isinstance(value, dict) and isinstance(theirs.get(key), dict)
        else value
        for key, value in ours.items()
    }
    return {
        **both,
        **{key: value for key, value in theirs.items() if not isinstance(both.get(key), dict)},
    }
