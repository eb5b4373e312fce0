"""Weights to the bit."""

import hashlib
from pathlib import Path


def weights_hash(path: Path) -> str:
    """SHA-256 of a safetensors file, tensor by tensor."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
