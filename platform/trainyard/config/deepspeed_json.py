"""A user's DeepSpeed JSON: merged over our settings, but for the keys that flags set."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.errors import UserError

Json = dict[str, Any]


@dataclass(frozen=True)
class Owned:
    """A key that a flag sets: it may stay in a file that says what the flags say."""

    ours: Callable[[Any], Any]
    """Value that the flags of a `TrainConfig` mean."""
    flags: str
    """Flags to use instead, with the key's `{value}`."""


PRECISION = "--mixed-precision fp16, bf16 or no"
OWNED: dict[str, Owned] = {
    "train_batch_size": Owned(lambda c: c.train_batch_size, "--train-batch-size {value}"),
    "train_micro_batch_size_per_gpu": Owned(
        lambda c: c.per_device_train_batch_size, "--per-device-train-batch-size {value}"
    ),
    "gradient_accumulation_steps": Owned(
        lambda c: c.micro_batches_per_step / c.worker_range()[1],
        "--per-device-train-batch-size of --train-batch-size / ({value} x --num-workers)",
    ),
    "gradient_clipping": Owned(lambda c: c.max_grad_norm, "--max-grad-norm {value}"),
    "fp16.enabled": Owned(lambda c: c.mixed_precision == "fp16", PRECISION),
    "fp16.loss_scale": Owned(lambda _: 0, "no key: the loss scale is dynamic"),
    "bf16.enabled": Owned(lambda c: c.mixed_precision == "bf16", PRECISION),
    "amp.enabled": Owned(lambda _: False, PRECISION),
    "torch_autocast.enabled": Owned(lambda _: False, PRECISION),
    "zero_optimization.stage": Owned(lambda c: c.zero_stage, "--zero-stage {value}"),
    "zero_optimization.cpu_offload": Owned(
        lambda c: c.zero_offload == "cpu", "--zero-offload cpu or none"
    ),
    "zero_optimization.offload_optimizer.device": Owned(
        lambda c: c.zero_offload, "--zero-offload cpu or none"
    ),
    "zero_optimization.cpu_offload_params": Owned(lambda _: False, "--strategy fsdp --fsdp-offload"),
    "zero_optimization.offload_param.device": Owned(lambda _: "none", "--strategy fsdp --fsdp-offload"),
}  # fmt: skip
SCHEDULES = {
    "WarmupLR": "constant_with_warmup",
    "WarmupDecayLR": "linear",
    "WarmupCosineLR": "cosine",
}
DROPPED = ("optimizer", "scheduler", "fp16", "bf16", "amp", "torch_autocast",
           "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")  # fmt: skip
"""Sections of the flags, which DeepSpeed does not see."""


def read_deepspeed_json(source: str) -> str:
    """Return the JSON of a file, or of a text that begins with `{`, in one spelling.

    Raises:
        UserError: when it cannot be read, or is no JSON object.
    """
    try:
        text = source if source.startswith("{") else Path(source).read_text(encoding="utf-8")
        found = json.loads(text)
    except OSError as error:
        raise UserError(
            f"--deepspeed-config {source} cannot be read ({error.strerror}); give the path of a JSON file"
        ) from error
    except ValueError as error:
        raise UserError(f"--deepspeed-config {source} is no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"--deepspeed-config {source} must hold a JSON object, not {found!r}")
    return json.dumps(found, sort_keys=True)


def check_deepspeed_json(config: Any) -> None:
    """Refuse keys of a `TrainConfig`'s file that say otherwise than its flags.

    Raises:
        UserError: naming all such keys, and the flags to use instead.
    """
    theirs = json.loads(config.deepspeed_config or "{}")
    odd = []
    for path, owned in OWNED.items():
        value = _at(theirs, path)
        if value not in (None, "auto") and value != owned.ours(config):
            odd.append(f"{path} (use {owned.flags.format(value=value)})")
    for section, wanted in (("optimizer", _optimizer_flags), ("scheduler", _schedule_flags)):
        if section in theirs:
            values = wanted(theirs[section])
            if any(str(getattr(config, name)) != str(value) for name, value in values.items()):
                flags = " ".join(f"--{n.replace('_', '-')} {v}" for n, v in values.items())
                odd.append(f"{section} (use {flags})")
    if odd:
        raise UserError(
            f"--deepspeed-config sets what flags set here: {', '.join(odd)}; give these flags, then the "
            "keys may stay"
        )


def merge_deepspeed_json(ours: Json, source: str | None) -> Json:
    """Return DeepSpeed's config: `ours`, and over it the keys of the user's file that no flag sets."""
    theirs = _without_auto(json.loads(source or "{}"))
    for path in (*OWNED, *DROPPED):
        *sections, key = path.split(".")
        if isinstance(inside := _at(theirs, ".".join(sections)), dict):
            inside.pop(key, None)
    return _over(ours, theirs)


def _optimizer_flags(section: Json) -> Json:
    if str(section.get("type")).lower() not in ("adam", "adamw"):
        raise UserError(
            f"--deepspeed-config asks for the optimizer {section.get('type')}; runs train with torch's "
            "AdamW: delete the key `optimizer`"
        )
    params = section.get("params", {})
    names = {"lr": "learning_rate", "weight_decay": "weight_decay"}
    return {
        flag: float(params[key]) for key, flag in names.items() if params.get(key, "auto") != "auto"
    }


def _schedule_flags(section: Json) -> Json:
    if section.get("type") not in SCHEDULES:
        raise UserError(
            f"--deepspeed-config asks for the scheduler {section.get('type')}; use --lr-scheduler-type and "
            "--warmup-steps, and delete the key `scheduler`"
        )
    params = section.get("params", {})
    names = {"warmup_num_steps": "warmup_steps", "warmup_max_lr": "learning_rate"}
    values = {
        flag: float(params[key]) for key, flag in names.items() if params.get(key, "auto") != "auto"
    }
    return {"lr_scheduler_type": SCHEDULES[section["type"]], **values}


def _at(settings: Any, path: str) -> Any:
    """Return the value at a dotted path, None where there is none."""
    for key in path.split(".") if path else ():
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def _without_auto(settings: Json) -> Json:
    """Drop values that Hugging Face's integrations fill in."""
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
