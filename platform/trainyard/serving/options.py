"""Options: every key of `args` and `user_config` in serve/config.yaml, checked strictly.

Ray Serve ignores unknown keys. Here an unknown key is an error, which suggests the nearest valid
key.
"""

import difflib
import ipaddress
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from trainyard.config import flag, mismatch
from trainyard.errors import UserError
from trainyard.models import EngineName

if TYPE_CHECKING:
    EngineChoice = str
else:  # one Literal, so that an error lists all choices
    EngineChoice = Literal["auto", EngineName]

MODEL, SHARED, GATEWAY = "Model", "SharedModels", "Gateway"
"""Names of the deployments, to which `deployments:` in serve/config.yaml refers."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Host names that only this machine can reach."""

WILDCARDS = ("0.0.0.0", "::")  # compared with, not bound
"""Addresses that stand for all addresses of a host."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
"""Valid model names: NAME or ORG/NAME. No part can be `.` or `..`."""

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?")
"""Valid origins of web pages, as browsers send them in the header Origin."""

SUFFIXES = ("health", "info")
"""Pages of a model, at `GET /models/{name}/…`. A model of an organization cannot have one of these
as its NAME."""


FLAGS = {"model": "model_name_or_path"}
"""Fields of `ServeConfig` by the option that they set, where their names differ."""


class Strict(BaseModel):
    """Base of the options; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, fields: Any, where: str | None) -> Self:
        """Build the options from fields of a YAML file or of a command line.

        Args:
            fields: Values by key, or an instance of this class, which is returned.
            where: Origin of the fields, named in errors; None if they are flags of `trainyard serve`.

        Raises:
            UserError: A key is wrong; the message is one sentence about the first one.
        """
        if isinstance(fields, cls):
            return fields
        if not isinstance(fields, Mapping):
            raise UserError(f"{where} must hold lines of `key: value`, not {fields!r}")
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            raise UserError(_sentence(cls, error, where)) from None


def _sentence(options: type[BaseModel], error: ValidationError, where: str | None) -> str:
    found = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in found["loc"])
    field = str(found["loc"][0]) if found["loc"] else ""
    before = "" if where is None else f"{where}: "
    name = flag(FLAGS.get(field, field)) if where is None else f"'{key}'"
    if found["type"] == "extra_forbidden":
        return before + unknown_key(key, str(found["loc"][-1]), options)
    if found["type"] == "missing":
        return f"{before}the key '{key}' is missing"
    if found["type"] == "value_error":  # raised by a validator of this module, as a sentence
        return f"{before}{name}: {found['ctx']['error']}"
    if found["type"] == "literal_error":
        clause = mismatch(found["input"], options.model_fields[field].annotation)
        return f"{before}{name} {clause}"
    message = found["msg"]
    return f"{before}{name} is {found['input']!r}: {message[0].lower()}{message[1:]}"


def unknown_key(key: str, last: str, options: type[BaseModel]) -> str:
    """Return a clause about an unknown key that suggests the nearest valid key, or lists all.

    Args:
        key: Path of the key, with dots.
        last: Last part of the path.
        options: Model whose fields are the valid keys.
    """
    known = sorted(options.model_fields)
    close = difflib.get_close_matches(last, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
    return f"unknown key '{key}'; {hint}"


def check_keys(value: Mapping[str, Any], schema: Any, where: str) -> None:
    """Refuse keys that a pydantic model of Serve would ignore, at every level.

    Args:
        value: Configuration to check.
        schema: Serve's model of the configuration.
        where: Origin of the configuration, named in errors.

    Raises:
        UserError: A key is unknown; the message names the first one.
    """
    for key, item in value.items():
        if key not in schema.model_fields:
            raise UserError(f"{where}: {unknown_key(str(key), str(key), schema)}")
        inner = _model_in(schema.model_fields[key].annotation)
        for one in item if isinstance(item, list) else [item]:
            if inner is not None and isinstance(one, Mapping):
                check_keys(one, inner, where)


def _model_in(annotation: Any) -> Any:
    """Return the pydantic model inside a type such as `List[Model]` or `Model | None`, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_model_in(part) for part in get_args(annotation)]
    return next((model for model in found if model is not None), None)


def _host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not _is_address(name) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(
                f"{name!r} is not a host name; give names without scheme, port or wildcard, such as "
                "models.example.com; with API keys, leave the list out to allow any name"
            )
    return tuple(name.strip("[]").rstrip(".").lower() for name in names)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        scheme, _, host = origin.partition("://")
        port = {"http": ":80", "https": ":443"}.get(scheme)
        if origin != "*" and (not ORIGIN.fullmatch(origin) or (port and host.endswith(port))):
            raise ValueError(
                f"{origin!r} is not an origin as browsers send it; give `*`, or scheme and host in lower "
                "case, without a path and a default port, such as https://app.example.com"
            )
    return origins


HostNames = Annotated[tuple[str, ...], AfterValidator(_host_names)]
Origins = Annotated[tuple[str, ...], AfterValidator(_origins)]


def url_host(host: str) -> str:
    """Return the host part of a URL at which this machine reaches a server listening on `host`."""
    if host in ("", *WILDCARDS):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


class GatewayOptions(Strict):
    """`args` of the gateway.

    Attributes:
        keys_file: Path of a YAML list of API keys (see `keys.py`). Without keys, only this machine
            has access.
        allowed_hosts: Names accepted in the header Host, such as a proxy's. Without keys, the
            loopback names are accepted too. With keys, an empty list accepts any name. `/health`
            and `/ready` answer under any name. Pages under one of these names count as this
            server's pages, also when a proxy rewrites Host.
        cors_origins: Origins whose web pages may send requests, or `*` for all. Default: none.
        body_bytes: Maximum bytes of a request's body, also after decompression.
        body_seconds: Maximum seconds in which a body must arrive.
        unread_bytes: Maximum bytes buffered for all bodies that are still being received.
        request_timeout_s: Maximum seconds from the headers of a request to the end of its answer.
        concurrent_requests: Maximum requests in flight per gateway replica.
        num_replicas: Number of gateway replicas; they hold no model.
        num_cpus: CPUs that Ray reserves for each gateway replica.
    """

    keys_file: str | None = None
    allowed_hosts: HostNames = ()
    cors_origins: Origins = ()
    body_bytes: int = Field(default=2_000_000, ge=1)
    body_seconds: float = Field(default=5.0, gt=0)
    unread_bytes: int = Field(default=256_000_000, ge=1)
    request_timeout_s: float = Field(default=30.0, gt=0)
    concurrent_requests: int = Field(default=512, ge=1)
    num_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=0, ge=0)


class Version(Strict):
    """`user_config` of a model; a change loads the new version into the running replicas.

    Attributes:
        source: Run folder, its `model/`, folder of a saved model, `package:NAME/FOLDER`, or Hub id.
        revision: Branch, tag or commit of a Hub id.
    """

    source: str
    revision: str | None = None


class ModelOptions(Strict):
    """`args` of a model. A change replaces its replicas, one after another.

    Attributes:
        name: Name of the model in its URL, NAME or ORG/NAME. Default: the name of its application.
        task: Pipeline task. Default: the first task that supports the architecture in the model's
            config.
        engine: Engine of the forward pass: torch, compile or openvino. Default (auto): the engine
            that `trainyard engine` stored for the model on the same processor, else torch.
        dtype: Number type of the forward pass.
        device: `cpu` or `cuda`. Default: `cuda` when the replica has a GPU.
        threads: Threads of forward passes on the CPU. Default: `num_cpus`.
        batch_tokens: Maximum padded tokens of a forward pass: rows times longest row. Default: 4096
            on a CPU, 32,768 on a GPU.
        batch_rows: Maximum rows of a forward pass.
        waiting_tokens: Maximum tokens in the queue, and of one request. A full queue refuses
            requests with status 429.
        max_items: Maximum inputs of one request.
        max_rows: Maximum sequences of one request: texts times candidate labels, sentences, chunks
            of long texts, or generated texts. Also limits proposals for masks and answer spans of a
            context.
        max_new_tokens: Maximum tokens generated for one text.
        max_parameters: Maximum parameters of a model, both in its weights and by its config.
        num_replicas: Number of replicas. Default: 1. Not allowed together with `autoscaling`.
        autoscaling: Ray Serve's `autoscaling_config`.
        num_cpus: CPUs that Ray reserves for each replica.
        num_gpus: GPUs that Ray reserves for each replica.
    """

    name: str | None = None
    task: str | None = None
    engine: EngineChoice = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None
    threads: int | None = Field(default=None, ge=1)
    batch_tokens: int | None = Field(default=None, ge=1)
    batch_rows: int = Field(default=128, ge=1)
    waiting_tokens: int = Field(default=131_072, ge=1)
    max_items: int = Field(default=128, ge=1)
    max_rows: int = Field(default=2048, ge=1)
    max_new_tokens: int = Field(default=4096, ge=1)
    max_parameters: float = Field(default=20e9, gt=0)
    num_replicas: int | None = Field(default=None, ge=1)
    autoscaling: dict[str, Any] | None = None
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)

    @field_validator("name")
    @classmethod
    def _name(cls, name: str | None) -> str | None:
        return name if name is None else check_name(name)

    @field_validator("autoscaling")
    @classmethod
    def _autoscaling(
        cls, config: dict[str, Any] | None, others: ValidationInfo
    ) -> dict[str, Any] | None:
        if config is None:
            return None
        from ray.serve.config import AutoscalingConfig

        if others.data.get("num_replicas") is not None:
            raise ValueError("it sets the number of replicas, and so does num_replicas; give one")
        try:
            check_keys(config, AutoscalingConfig, "it")
        except UserError as error:
            raise ValueError(str(error)) from None
        return config


class SharedOptions(ModelOptions):
    """`args` of replicas that many rarely used models share.

    Attributes:
        max_loaded: Maximum models loaded in one replica; the least recently used is evicted.
    """

    max_loaded: int = Field(default=3, ge=1)

    @field_validator("name")
    @classmethod
    def _no_name(cls, name: str | None) -> None:
        if name is not None:
            raise ValueError("shared models have their names in `user_config`")


class SharedVersions(Strict):
    """`user_config` of shared replicas: their models, by name."""

    models: dict[str, Version]

    @field_validator("models")
    @classmethod
    def _names(cls, models: dict[str, Version]) -> dict[str, Version]:
        for name in models:
            check_name(name)
        return models


class HostOptions(ModelOptions):
    """Arguments of `serve run trainyard.serving.app:build model=…`.

    Attributes:
        model: Source of the model, see `Version.source`.
        name: Name of the model in its URL. Default: the name of its run, or the last part of its
            source.
        keys_file: See `GatewayOptions`.
        allowed_hosts: See `GatewayOptions`.
        cors_origins: See `GatewayOptions`.
    """

    model: str
    keys_file: str | None = None
    allowed_hosts: HostNames = ()
    cors_origins: Origins = ()


def check_name(name: str) -> str:
    """Return `name` if it is a valid model name.

    Raises:
        ValueError: `name` is not valid.
    """
    if not NAME.fullmatch(name) or ("/" in name and name.rpartition("/")[2] in SUFFIXES):
        raise ValueError(
            f"'{name}' is not a model name; use up to 96 letters, digits, '.', '_' and '-', starting "
            "with a letter or a digit, optionally after an organization and '/'"
        )
    return name
