"""SHA-256 of files."""

import hashlib
from pathlib import Path


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, without loading the file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
