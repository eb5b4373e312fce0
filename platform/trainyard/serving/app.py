"""Builders of the Serve applications: a gateway that holds no model, and one application for each model.

Each model is deployed, scaled and replaced separately. The second hop through the gateway shelters models
from slow clients, and lets a request be retried when a replica dies. Builders run in Serve's build task
and in jobs, never in a gateway or a replica: only here both sides meet.
"""

import os
import re
from collections.abc import Mapping
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
"""The gateway never blocks, so it runs on its replica's own event loop. Otherwise each part of a request
and of its answer wakes another thread (0.3 to 0.6 ms a request behind the fast ingress)."""


def gateway_application(
    args: Any, models: Mapping[str, "Application"] | None = None
) -> "Application":
    """Build the gateway from its `args`; `models` are deployed with it, by their names."""
    from ray import serve

    from trainyard.serving.gateway.deployment import Gateway

    options = GatewayOptions.parse(args, "args of the gateway")
    deployment = serve.deployment(
        serve.ingress()(Gateway),
        name=GATEWAY,
        num_replicas=options.num_replicas,
        ray_actor_options={"num_cpus": options.num_cpus, "runtime_env": {"env_vars": ONE_LOOP}},
        # A slow client counts here; the limit that matters is `concurrent_requests`.
        max_ongoing_requests=100_000,
        max_surge_percent=100,  # also a single one is replaced only when the next is ready
        logging_config={"enable_access_log": False},
    )
    models = models or {}
    return deployment.bind(options.model_dump(), list(models), *models.values())


def gateway(args: dict[str, Any]) -> "Application":
    """Build the HTTP application in front of all models: `import_path: trainyard.serving.app:gateway`."""
    return gateway_application(args)


def model(args: dict[str, Any]) -> "Application":
    """Build one model with its own replicas; `user_config` sets its version."""
    from trainyard.serving.replica.deployment import ModelReplica
    from trainyard.serving.replica.versioned_model import Build

    options = ModelOptions.parse(args, "args of a model")
    fields = options.model_dump()
    return _replicas(ModelReplica, MODEL, options).bind(options.name, fields, Build.of(fields))


def shared(args: dict[str, Any]) -> "Application":
    """Build replicas that several models share; `user_config` lists them."""
    from trainyard.serving.replica.shared import SharedReplica
    from trainyard.serving.replica.versioned_model import Build

    options = SharedOptions.parse(args, "args of shared models")
    fields = options.model_dump()
    return _replicas(SharedReplica, SHARED, options).bind(fields, Build.of(fields))


def build(args: dict[str, Any]) -> "Application":
    """Build a gateway and one model: `serve run trainyard.serving.app:build model=runs/x/model`."""
    from trainyard.serving.replica.deployment import ModelReplica
    from trainyard.serving.replica.model_source import locate
    from trainyard.serving.replica.versioned_model import Build

    wanted = HostOptions.parse(args, "trainyard.serving.app:build")
    of_gateway = {"keys_file", "allowed_hosts", "cors_origins"}
    options = ModelOptions(**wanted.model_dump(exclude={"model", "name", *of_gateway}))
    if options.threads is None:  # it has the machine to itself
        options = options.model_copy(update={"threads": os.cpu_count()})
    if Path(wanted.model).exists():  # else it may be a folder that only the cluster's nodes see
        locate(Version(source=wanted.model), options.max_parameters)
    replicas = _replicas(ModelReplica, MODEL, options, user_config={"source": wanted.model})
    name = wanted.name or default_name(wanted.model)
    return gateway_application(
        wanted.model_dump(include=of_gateway),
        {name: replicas.bind(name, options.model_dump(), Build.of(wanted.model_dump()))},
    )


def default_name(source: str) -> str:
    """The name of a model without one: its run, or the last part of its source."""
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
        # The batcher has the queue, bounded in tokens; Serve must not keep one in front of it.
        max_ongoing_requests=100_000,
        max_constructor_retry_count=2,  # a model that is broken stays broken
        max_surge_percent=100,  # the next replica is ready before the old one goes
        logging_config={"enable_access_log": False},
        **more,
    )
