"""What one node is like. Sent to each node as it stands, so it imports nothing of ours at the top.

A node where the package cannot be imported can so still say why.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "transformers", "accelerate", "datasets", "pyarrow", "numpy")


@dataclass(frozen=True)
class Question:
    """What is asked of each node.

    `marker` is a file that the driver wrote below the storage path, `content` what it holds;
    `model` the folder that holds the model, or a Hub id when `hub` is true, or None.
    """

    storage: str
    marker: str
    content: str
    model: str | None = None
    hub: bool = False


def examine(question: Question) -> dict[str, Any]:
    """Facts about the node that this runs on, as JSON."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "trainyard": _trainyard(),
        **_storage(question),
        "disk": _space(question.storage),
        "temporary": _space(tempfile.gettempdir()),
        "shared_memory": _space("/dev/shm"),
        "auth_mode": os.environ.get("RAY_AUTH_MODE"),
        "model": None if question.model is None else _model(question.model, hub=question.hub),
    }


def clock() -> float:
    """Seconds since the epoch, by this node."""
    return time.time()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _trainyard() -> dict[str, Any]:
    """Where the package is imported from, and a hash of its sources; or why it is not."""
    try:
        package = importlib.import_module("trainyard")
        importlib.import_module("trainyard.training.driver.launch")
    except Exception as error:  # whatever it is, it is the finding
        return {"fault": f"{type(error).__name__}: {error}"}
    folder = Path(str(package.__file__)).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.pyi")]):
        digest.update(path.read_bytes())
    return {"folder": str(folder), "digest": digest.hexdigest()[:12]}


def _storage(question: Question) -> dict[str, Any]:
    """Whether the driver's marker is there, and the name of the one written here; or why not."""
    marker = Path(question.marker)
    found: dict[str, Any] = {"reads": None, "writes": None, "wrote": None}
    if "://" in question.storage:
        return {**found, **_bucket(question)}
    try:
        if marker.read_text() != question.content:
            found["reads"] = "the driver's file has another content"
    except OSError as error:
        found["reads"] = error.strerror or str(error)
    own = marker.with_name(f"{marker.name}-{uuid.uuid4().hex}")
    try:
        own.write_text(question.content)
        found["wrote"] = own.name
    except OSError as error:
        found["writes"] = error.strerror or str(error)
    return found


def _bucket(question: Question) -> dict[str, Any]:
    """Whether the driver's marker can be read from here, and one written; or why not."""
    try:
        from trainyard.storage import Bucket

        bucket = Bucket(question.storage, impatient=True)
        marker = bucket.read(question.marker)
        bucket.write(f"{question.marker}-{uuid.uuid4().hex}", question.content.encode())
    except Exception as error:  # whatever it is, it is the finding
        return {"reads": f"{type(error).__name__}: {error}"}
    if marker is None or marker.content.decode() != question.content:
        return {"reads": "the driver's object has another content"}
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
    """Why the model cannot be loaded here, or None."""
    if not hub:
        found = (Path(name) / "config.json").is_file()
        return None if found else f"{name} holds no config.json"
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return None
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set and the model is not in the cache"
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # whatever it is, it is the finding
        return f"not in the cache, and the Hub answers {type(error).__name__}"
    return None
