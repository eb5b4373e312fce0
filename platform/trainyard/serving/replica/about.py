"""What `GET /models/{name}` says before a model is loaded: what its files and its options tell."""

import json
from pathlib import Path
from typing import Any

from trainyard.errors import UserError
from trainyard.inference import PREDICTORS, json_schema
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica.model_source import locate, task_of

LABELED = ("text-classification", "token-classification")
"""Tasks whose models name their outputs in `id2label`."""


def glance(version: Version, options: ModelOptions) -> dict[str, Any]:
    """As `Host.describe`, as far as that goes without a model; nothing is fetched from the Hub.

    Raises:
        UserError: when the model could not be loaded either.
    """
    about: dict[str, Any] = {"source": version.source, "revision": version.revision}
    about |= {"status": "not loaded", "dtype": options.dtype}
    here = version.source.startswith("package:") or Path(version.source).expanduser().exists()
    if not here:
        return about | ({"task": options.task} if options.task else {})
    folder, found = locate(version, options.max_parameters)
    task = options.task or task_of(folder)
    if task not in PREDICTORS:
        raise UserError(f"task '{task}' is none of {', '.join(sorted(PREDICTORS))}")
    predictor = PREDICTORS[task]
    about |= found | {"task": task, "example": dict(predictor.example)}
    about["parameters"] = json_schema(predictor.parameters)
    if task in LABELED:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label", {})
        about["labels"] = [names[number] for number in sorted(names, key=int)]
    return about
