"""Choose the engine of a model: by the options, or by the measurement stored with the model."""

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
"""In the model's folder: what `trainyard engine` measured there, and what it chose."""
INT8 = Path("engine/int8.xml")
"""In the model's folder: the model in int8, of OpenVINO's own format."""


@dataclass(frozen=True)
class Choice:
    """An engine and its number type; `why` is the reason for ignoring the stored choice, if any."""

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
    """Return `engine`, or for `auto` the choice that is stored in the model's folder.

    A measurement holds for the same weights, processor, number type and device only; otherwise the
    choice is torch.

    Raises:
        UserError: for a stored choice that cannot be read.
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
    """SHA-256 of a model's weights, or of other files of a folder."""
    digests = [file_digest(path) for path in sorted(folder.glob(pattern))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def machine() -> str:
    """Name of the processor and a digest of its features: measurements hold for equal ones only."""
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
