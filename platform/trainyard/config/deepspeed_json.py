"""A user's DeepSpeed JSON: check the keys that flags control, and merge the others."""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainyard.config.deepspeed_keys import (
    AN_OBJECT,
    DROPPED,
    FOREIGN,
    KINDS,
    KNOWN,
    NOWHERE,
    OBJECTS,
    OWNED,
    PRECISIONS,
    SECTIONS,
    WITHOUT_EFFECT,
    Owned,
    defaults,
)
from trainyard.errors import UserError

Json = dict[str, Any]


def read_deepspeed_json(source: str) -> str:
    """Return DeepSpeed settings as JSON text with sorted keys: equal settings give equal texts.

    Args:
        source: Path of a JSON file, or JSON text that starts with `{`.

    Raises:
        UserError: The file cannot be read, is from `accelerate config`, holds no JSON object, or has
            a key twice.
    """
    try:
        text = source if source.startswith("{") else Path(source).read_text(encoding="utf-8")
        if "distributed_type" in text:
            raise UserError(
                f"--deepspeed-config {source} is a file of `accelerate config`; give it to --config"
            )
        found = json.loads(text, object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise UserError(
            f"--deepspeed-config {source} cannot be read ({error.strerror}); give the path of a JSON file"
        ) from error
    except ValueError as error:
        raise UserError(f"--deepspeed-config {source} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"--deepspeed-config {source} must hold a JSON object, not {found!r}")
    return json.dumps(found, sort_keys=True)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise UserError(f"--deepspeed-config sets {', '.join(twice)} twice; delete one of the two")
    return found


def check_deepspeed_json(config: Any) -> None:
    """Check that the DeepSpeed settings of a `TrainConfig` agree with its flags.

    Raises:
        UserError: Keys are unknown to DeepSpeed, contradict the flags or have no counterpart, or a
            value is of another kind; the message lists them.
    """
    settings = json.loads(config.deepspeed_config or "{}")
    _check_names(settings)
    theirs = _without_auto(settings)
    odd = [
        f"{path} ({advice})" for path, advice in FOREIGN.items() if not _is_off(_at(theirs, path))
    ]
    for path, value in leaves(theirs):
        owned = _owner(path, value)
        if owned and not _is_idle(path, config) and not owned.agrees(config, value):
            odd.append(f"{path} ({owned.advice(config, value)})")
    if odd:
        raise UserError(
            f"--deepspeed-config sets what flags set here: {', '.join(odd)}; keys that agree with the "
            "flags may stay"
        )
    _check_kinds(theirs)


def _owner(path: str, value: Any) -> Owned | None:
    """Return the check of a key; None if the key may have any value here."""
    if owned := OWNED.get(path) or OBJECTS.get(path):
        return owned
    if path in KNOWN:
        return AN_OBJECT
    if path.split(".")[0] not in SECTIONS or value is None or value is False:
        return None
    section, _, key = path.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in OWNED if name.startswith(f"{section}.")]
    near = difflib.get_close_matches(key, siblings, n=1)
    return Owned(lambda *_: False, f"did you mean {near[0]}?") if near else NOWHERE


def _is_idle(path: str, config: Any) -> bool:
    """Return whether the precision of a key's section is off, so that the key has no effect."""
    section, _, key = path.partition(".")
    return (
        section in PRECISIONS
        and key not in ("", "enabled")
        and config.mixed_precision != PRECISIONS[section]
    )


def _check_names(settings: Json) -> None:
    unknown = []
    for section, names in KNOWN.items():
        inside = _at(settings, section)
        for key in inside if isinstance(inside, dict) else ():
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                advice = f"did you mean {near[0]}?" if near else "delete it"
                path = f"{section}.{key}" if section else key
                unknown.append(f"{path} is not a key of DeepSpeed ({advice})")
    if unknown:
        raise UserError(f"--deepspeed-config: {', '.join(unknown)}")


def _check_kinds(settings: Json) -> None:
    for path, value in leaves(settings):
        fits, kind = KINDS.get(path, (lambda _: True, ""))
        if not fits(value):
            raise UserError(f"--deepspeed-config: {path} is {json.dumps(value)}; it must be {kind}")


def _is_off(value: Any) -> bool:
    return not value or (isinstance(value, dict) and value.get("enabled") is False)


def deepspeed_differences(config: Any) -> list[str]:
    """Return up to two sentences on keys of the file that mean something else, or nothing, here.

    These are keys that the file leaves out and DeepSpeed sets otherwise, and keys without effect.
    `config` is a `TrainConfig`. The other keys are checked by `check_deepspeed_json`.
    """
    theirs = json.loads(config.deepspeed_config or "{}")
    given = {path for path, _ in leaves(theirs)}
    implied = defaults(theirs, fp16=config.mixed_precision == "fp16")
    found = []
    for path, default in implied.items():
        here = OWNED[path].here
        if path not in given and here is not None and default != here(config):
            found.append(f"{path} ({_number(default)} there, {_number(here(config))} here)")
    warnings = []
    if found:
        warnings.append(
            "warning: --deepspeed-config leaves out keys whose defaults in DeepSpeed are not those in "
            f"use here: {', '.join(found)}"
        )
    if idle := [*_without_effect(_without_auto(theirs), config)]:
        warnings.append(
            f"warning: --deepspeed-config sets keys that have no effect here: {', '.join(idle)}"
        )
    return warnings


def _without_effect(settings: Json, config: Any) -> Iterator[str]:
    """Yield keys and sections without effect that are not off, each with its reason."""
    for path, reason in WITHOUT_EFFECT.items():
        value = _at(settings, path)
        owned = OWNED.get(path)
        agrees = owned is not None and owned.here is not None and value == owned.here(config)
        if not (_is_all_off(value) or agrees or _is_idle(path, config)):
            yield f"{path} ({reason})"


def _is_all_off(value: Any) -> bool:
    return all(map(_is_all_off, value.values())) if isinstance(value, dict) else not value


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    for path in (*DROPPED, *(path for path in KNOWN if _at(theirs, path) is None)):
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
