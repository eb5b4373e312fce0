"""Hash of a model's weights, for bit-exact comparison."""

import hashlib
from pathlib import Path


def weights_hash(path: Path) -> str:
    """Return the SHA-256 over the names and bytes of all tensors of a safetensors file."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
