"""Subcommands of `trainyard serve`: check a configuration, make API keys, print an example."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainyard.errors import UserError, one_line
from trainyard.serving.gateway.keys import new_key
from trainyard.serving.options import (
    GATEWAY,
    MODEL,
    SHARED,
    GatewayOptions,
    ModelOptions,
    SharedOptions,
    SharedVersions,
    Strict,
    Version,
    check_keys,
    check_name,
)

KINDS: dict[str, tuple[str, type[Strict], type[Strict] | None]] = {
    "gateway": (GATEWAY, GatewayOptions, None),
    "model": (MODEL, ModelOptions, Version),
    "shared": (SHARED, SharedOptions, SharedVersions),
}
"""Builder in `trainyard.serving.app` -> name of its deployment, options in `args`, options in
`user_config` (None for a deployment without one)."""


USAGE = "use `check FILE.yaml`, `new-key NAME [MODEL …]` or `example`"


def main(argv: list[str]) -> None:
    """Run one subcommand; with -h or --help, print which there are.

    Raises:
        SystemExit: `argv` or a file has a mistake, printed as one sentence; the status is 2.
    """
    if {"-h", "--help"} & {*argv}:
        print(USAGE)  # noqa: T201
        return
    try:
        if not argv or argv[0] not in WORDS or not _takes(WORDS[argv[0]], argv[1:]):
            raise UserError(USAGE)
        if flags := [word for word in argv if word.startswith("-")]:
            raise UserError(f"{argv[0]} has no flag {flags[0]}; {USAGE}")
        WORDS[argv[0]](*argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _takes(word: Callable[..., None], args: Sequence[str]) -> bool:
    try:
        inspect.signature(word).bind(*args)
    except TypeError:
        return False
    return True


def _new_key(name: str, *models: str) -> None:
    secret, key = new_key(name, list(models) or None)
    print(  # noqa: T201
        f"give this key to its user; it is not stored anywhere: {secret}", file=sys.stderr
    )
    entry = key.model_dump(exclude_none=True) | (
        {"models": sorted(key.models)} if key.models else {}
    )
    print(yaml.safe_dump([entry], sort_keys=False), end="")  # noqa: T201


def _check(path: str) -> None:
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    check_config(config, path)
    names = ", ".join(application["name"] for application in config["applications"])
    print(f"{path} is valid: {names}", file=sys.stderr)  # noqa: T201


def _example() -> None:
    print(Path(__file__).with_name("example.yaml").read_text(encoding="utf-8"), end="")  # noqa: T201


WORDS: dict[str, Callable[..., None]] = {"check": _check, "new-key": _new_key, "example": _example}
"""Subcommand -> function that takes its arguments."""


def check_config(config: Any, where: str) -> None:
    """Check the content of a Serve config file strictly; Serve itself ignores unknown keys.

    Args:
        config: Parsed YAML of the file.
        where: Name of the file in errors.

    Raises:
        UserError: The config has a mistake; the message names the first one found.
    """
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    if not isinstance(config, Mapping):
        raise UserError(f"{where} must hold a Serve config, not {one_line(repr(config), 60)}")
    check_keys(config, ServeDeploySchema, where)
    applications: dict[str, str] = {}
    listed = config.get("applications") or []
    if not isinstance(listed, list):
        raise UserError(f"{where}: applications must be a list of entries with a name")
    for number, application in enumerate(listed):
        if not isinstance(application, Mapping) or "name" not in application:
            raise UserError(f"{where}: applications.{number} has no name")
        owner = f"application '{application['name']}'"
        for model in _check_application(application, f"{where}: {owner}"):
            if model in applications:
                raise UserError(
                    f"{where}: the model '{model}' is in {applications[model]} and in {owner}; the "
                    "name keeps requests apart: give one of them another"
                )
            applications[model] = owner
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        key = ".".join(map(str, found["loc"]))
        raise UserError(f"{where}: '{key}': {found['msg']}") from None


def _check_application(application: Mapping[str, Any], where: str) -> list[str]:
    builder = str(application.get("import_path", "")).rpartition(":")[2]
    if builder not in KINDS:
        raise UserError(
            f"{where}: import_path must end in one of {', '.join(f':{kind}' for kind in KINDS)}"
        )
    deployment, args, user_config = KINDS[builder]
    try:
        name = check_name(str(application["name"]))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if "/" in name:
        raise UserError(
            f"{where}: Serve has no applications with '/' in their names; set `name: {name}` in args"
        )
    options = args.parse(application.get("args") or {}, f"{where}: args")
    deployments = application.get("deployments") or []
    if not isinstance(deployments, list) or not all(
        isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in deployments
    ):
        raise UserError(f"{where}: deployments must be a list of entries with a name")
    versions = {item.get("name"): item.get("user_config") for item in deployments}
    for other in versions:
        if other != deployment:
            raise UserError(
                f"{where}: there is no deployment '{other}'; its name is '{deployment}'"
            )
    if user_config is None:
        return []
    if versions.get(deployment) is None:
        raise UserError(f"{where}: deployments must hold `name: {deployment}` with a user_config")
    wanted = user_config.parse(versions[deployment], f"{where}: user_config")
    if isinstance(wanted, SharedVersions):
        return list(wanted.models)
    assert isinstance(options, ModelOptions)
    return [options.name or name]
