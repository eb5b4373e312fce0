"""Collect facts about one node.

Ray sends this module by value, and the module does not import trainyard at the top. So a node that
cannot import trainyard still reports the reason.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "transformers", "accelerate", "datasets", "pyarrow", "numpy")


@dataclass(frozen=True)
class Question:
    """Storage, marker file and model that a node checks."""

    storage: str
    marker: str
    """File or bucket key below the storage path to which the driver wrote `content`."""
    content: str
    model: str | None = None
    """Folder of the model, or its Hub id if `hub` is True; None to skip the check."""
    hub: bool = False
    extras: Mapping[str, str] = field(default_factory=dict)
    """Modules that the flags need, with the package of each."""


def examine(question: Question) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": {module: _extra(module, package) for module, package in question.extras.items()},
        "trainyard": _trainyard(),
        **_storage(question),
        "disk": _space(question.storage),
        "temporary": _space(tempfile.gettempdir()),
        "shared_memory": _space("/dev/shm"),
        "auth_mode": os.environ.get("RAY_AUTH_MODE"),
        "model": None if question.model is None else _model(question.model, hub=question.hub),
    }


def clock() -> float:
    return time.time()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extra(module: str, package: str) -> str | None:
    """Return the version of an installed module; None if it is absent."""
    if importlib.util.find_spec(module) is None:
        return None
    return _version(package) or _version(module) or "unknown"


def _trainyard() -> dict[str, Any]:
    """Return the folder of the package and a digest of its sources, or the error of the import."""
    try:
        package = importlib.import_module("trainyard")
        importlib.import_module("trainyard.training.driver.restarts")
    except Exception as error:  # any error is the finding
        return {"fault": f"{type(error).__name__}: {error}"}
    folder = Path(str(package.__file__)).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.pyi")]):
        digest.update(path.read_bytes())
    return {"folder": str(folder), "digest": digest.hexdigest()[:12]}


def _storage(question: Question) -> dict[str, Any]:
    """Read the driver's marker, and write an answer next to it.

    Returns the errors `reads` and `writes`, None if there are none, and `wrote`, the name of the
    answer.
    """
    marker = Path(question.marker)
    facts: dict[str, Any] = {"reads": None, "writes": None, "wrote": None}
    if "://" in question.storage:
        return {**facts, **_bucket(question)}
    try:
        if marker.read_text() != question.content:
            facts["reads"] = "the driver's file has different content"
    except OSError as error:
        facts["reads"] = error.strerror or str(error)
    answer = marker.with_name(f"{marker.name}-{uuid.uuid4().hex}")
    try:
        answer.write_text(question.content)
        facts["wrote"] = answer.name
    except OSError as error:
        facts["writes"] = error.strerror or str(error)
    return facts


def _bucket(question: Question) -> dict[str, Any]:
    """Read the driver's marker from the bucket, and write an answer; return the error, if any."""
    try:
        from trainyard.storage import Bucket

        bucket = Bucket(question.storage, impatient=True)
        marker = bucket.read(question.marker)
        bucket.write(f"{question.marker}-{uuid.uuid4().hex}", question.content.encode())
    except Exception as error:  # any error is the finding
        return {"reads": f"{type(error).__name__}: {error}"}
    if marker is None or marker.content.decode() != question.content:
        return {"reads": "the driver's object has different content"}
    return {}


def _space(folder: str) -> dict[str, int] | None:
    path = Path(folder)
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return {"free": usage.free, "total": usage.total}


def _model(name: str, *, hub: bool) -> str | None:
    """Return the reason why the model cannot be loaded on this node, or None."""
    if not hub:
        has_config = (Path(name) / "config.json").is_file()
        return None if has_config else f"{name} has no config.json"
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return None
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set and the model is not in the cache"
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # any error is the finding
        return f"not in the cache, and the Hub answers {type(error).__name__}"
    return None
