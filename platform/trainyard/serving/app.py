"""Builders of the Serve applications: the gateway, which holds no model, and models.

A model built by `model` is deployed, scaled and replaced separately. Several rarely used models can
share replicas instead (`shared`). The gateway receives whole requests before it forwards them, so
slow clients do not occupy models. It also retries a request after a replica dies. Ray Serve calls
the builders when it deploys a config, and `trainyard serve` calls `build`. Gateways and replicas
never import this module.
"""

import os
import re
from collections.abc import Mapping
from os.path import exists
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.serving.options import (
    GATEWAY,
    MODEL,
    SHARED,
    GatewayOptions,
    HostOptions,
    ModelOptions,
    SharedOptions,
    Version,
)

if TYPE_CHECKING:
    from ray.serve import Application, Deployment

ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""Environment variables that run the gateway on the event loop of Serve's replica. The gateway
never blocks. On a separate loop, each part of a request and of its answer would wake another
thread."""


def gateway_application(
    args: Any, models: Mapping[str, "Application"] | None = None
) -> "Application":
    """Build the application of the gateway.

    Args:
        args: Fields of `GatewayOptions`.
        models: Applications to deploy together with the gateway, by model name.

    Raises:
        UserError: `args` are invalid.
    """
    from ray import serve

    from trainyard.serving.gateway.deployment import Gateway

    options = GatewayOptions.parse(args, "args of the gateway")
    deployment = serve.deployment(
        serve.ingress()(Gateway),
        name=GATEWAY,
        num_replicas=options.num_replicas,
        ray_actor_options={"num_cpus": options.num_cpus, "runtime_env": {"env_vars": ONE_LOOP}},
        # Serve counts slow clients as ongoing; `concurrent_requests` is the effective limit.
        max_ongoing_requests=100_000,
        max_surge_percent=100,  # a single replica stays until the next is ready
        logging_config={"enable_access_log": False},
    )
    models = models or {}
    return deployment.bind(options.model_dump(), list(models), *models.values())


def gateway(args: dict[str, Any]) -> "Application":
    """Build the gateway, which is the HTTP application in front of all models.

    A Serve config refers to it as `import_path: trainyard.serving.app:gateway`.

    Args:
        args: Fields of `GatewayOptions`.

    Raises:
        UserError: `args` are invalid.
    """
    return gateway_application(args)


def model(args: dict[str, Any]) -> "Application":
    """Build one model with its own replicas; its `user_config` is a `Version`.

    Args:
        args: Fields of `ModelOptions`.

    Raises:
        UserError: `args` are invalid.
    """
    from trainyard.serving.replica.deployment import ModelReplica
    from trainyard.serving.replica.version_records import Build

    options = ModelOptions.parse(args, "args of a model")
    fields = options.model_dump()
    return _replicas(ModelReplica, MODEL, options).bind(options.name, fields, Build.of(fields))


def shared(args: dict[str, Any]) -> "Application":
    """Build replicas that several models share; their `user_config` is a `SharedVersions`.

    Args:
        args: Fields of `SharedOptions`.

    Raises:
        UserError: `args` are invalid.
    """
    from trainyard.serving.replica.shared import SharedReplica
    from trainyard.serving.replica.version_records import Build

    options = SharedOptions.parse(args, "args of shared models")
    fields = options.model_dump()
    return _replicas(SharedReplica, SHARED, options).bind(fields, Build.of(fields))


def check_host(args: Mapping[str, Any], where: str | None) -> HostOptions:
    """Return the options of `build`, after all checks of it that need no Ray Serve.

    Args:
        args: Fields of `HostOptions`.
        where: Origin of the fields, see `Strict.parse`.

    Raises:
        UserError: `args` are invalid, or the files of a local model are missing, unsafe or damaged.
    """
    from trainyard.serving.replica.model_source import locate

    wanted = HostOptions.parse(args, where)
    # Else a Hub id, or a folder on the cluster's nodes. Path.exists raises for a name that is too long.
    if exists(wanted.model):  # noqa: PTH110
        locate(Version(source=wanted.model), wanted.max_parameters)
    return wanted


def build(args: dict[str, Any]) -> "Application":
    """Build a gateway and one model: `serve run trainyard.serving.app:build model=runs/x/model`.

    Args:
        args: Fields of `HostOptions`.

    Raises:
        UserError: `args` are invalid, or the files of a local model are missing, unsafe or damaged.
    """
    wanted = check_host(args, "trainyard.serving.app:build")
    from trainyard.serving.replica.deployment import ModelReplica
    from trainyard.serving.replica.version_records import Build

    of_gateway = {"keys_file", "allowed_hosts", "cors_origins"}
    options = ModelOptions(**wanted.model_dump(exclude={"model", "name", *of_gateway}))
    if options.threads is None:  # the model is alone on this machine
        options = options.model_copy(update={"threads": os.cpu_count()})
    replicas = _replicas(ModelReplica, MODEL, options, user_config={"source": wanted.model})
    name = wanted.name or default_name(wanted.model)
    return gateway_application(
        wanted.model_dump(include=of_gateway),
        {name: replicas.bind(name, options.model_dump(), Build.of(wanted.model_dump()))},
    )


def default_name(source: str) -> str:
    """Return the default name of a model in its URL: its run, or the last part of `source`.

    Characters that a name cannot have become "-".
    """
    path = Path(source.removeprefix("package:"))
    last = path.absolute().parent.name if path.name == "model" else path.name
    name = re.sub("[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:96]
    return name or "model"


def _replicas(replica: type[Any], name: str, options: ModelOptions, **more: Any) -> "Deployment":
    from ray import serve

    if options.autoscaling is None:
        more["num_replicas"] = options.num_replicas or 1
    else:
        more["autoscaling_config"] = options.autoscaling
    return serve.deployment(
        replica,
        name=name,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        # The batcher's queue is bounded in tokens; Serve must not queue in front of it.
        max_ongoing_requests=100_000,
        max_surge_percent=100,  # the old replica stays until the next is ready
        logging_config={"enable_access_log": False},
        **more,
    )
