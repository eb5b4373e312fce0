"""Choose the engine of a model: the requested one, or the one stored with the model."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.errors import UserError
from trainyard.models.engines.registry import ENGINES
from trainyard.storage import file_digest

FILE = "engine.json"
"""File in the model's folder: measurements and choice of `trainyard engine`."""
INT8 = Path("engine/int8.xml")
"""Path in the model's folder: the model in int8, in OpenVINO's format."""


@dataclass(frozen=True)
class Choice:
    """Engine that runs a model.

    Attributes:
        engine: Name in `ENGINES`.
        dtype: Data type of the engine.
        file: File of the stored int8 model; None for other dtypes.
        why: Reason for ignoring the stored choice; None if it was not ignored.
    """

    engine: str = "torch"
    dtype: str = "float32"
    file: Path | None = None
    why: str | None = None

    def how(self) -> dict[str, Any]:
        return {"engine": self.engine, "dtype": self.dtype, "engine_file": self.file}

    def about(self) -> dict[str, str]:
        note = {"engine_note": f"{self.why}, so torch runs it"} if self.why else {}
        return {"engine": self.engine, "dtype": self.dtype, **note}


def choose(engine: str, dtype: str, folder: Path, device: str) -> Choice:
    """Return the requested engine; for `auto`, the choice stored in the model's folder.

    A stored choice applies to float32 requests on a CPU, and only to the weights and the processor
    that were measured. Otherwise `auto` is torch.

    Raises:
        UserError: The stored choice cannot be read.
    """
    if engine != "auto":
        return Choice(engine, dtype)
    stored = read(folder) if device == "cpu" and dtype == "float32" else None
    if stored is None:
        return Choice("torch", dtype)
    if stored["weights"] != weights_of(folder):
        return Choice(why=f"{FILE} was measured with other weights")
    if stored["machine"] != machine():
        return Choice(why=f"{FILE} was measured on another processor")
    file = folder / INT8 if stored["dtype"] == "int8" else None
    if file is not None and stored["file"] != weights_of(file.parent, "int8.*"):
        return Choice(why=f"{FILE} was measured with another {INT8}")
    return Choice(stored["engine"], stored["dtype"], file)


def read(folder: Path) -> Mapping[str, Any] | None:
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {key: found[key] for key in ("engine", "dtype", "weights", "machine", "file")}
        if known["dtype"] not in ENGINES[known["engine"]].dtypes:
            raise ValueError(f"no dtype {known['dtype']}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); measure again by "
            "`trainyard engine`, or remove the file"
        ) from None
    return known


def weights_of(folder: Path, pattern: str = "*.safetensors") -> str:
    """Return a SHA-256 over the digests of the files in `folder` that match `pattern`, by name."""
    digests = [file_digest(path) for path in sorted(folder.glob(pattern))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def machine() -> str:
    """Identify the processor of a measurement by its name and a digest of its feature flags."""
    name, abilities = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in reversed(lines):
        key, _, value = (part.strip() for part in line.partition(":"))
        name = value if key == "model name" else name
        abilities = value if key == "flags" else abilities
    return f"{name}, {hashlib.sha256(abilities.encode()).hexdigest()[:8]}"
