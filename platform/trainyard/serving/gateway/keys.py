"""API keys: many, stored as hashes, each for some models or all, compared in constant time.

    - name: reporting
      sha256: 9f86d0…
      models: [sentiment]     # left out: all models

A key is 32 random bytes, so its plain SHA-256 cannot be guessed from, unlike a password's.
"""

import hashlib
import hmac
import secrets
from pathlib import Path

from pydantic import Field, ValidationError

from trainyard.errors import UserError
from trainyard.serving.errors import RequestError
from trainyard.serving.options import Strict


class Key(Strict):
    """One entry of a keys file."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    models: frozenset[str] | None = None

    def opens(self, model: str | None) -> bool:
        """Whether it may use `model`; None stands for what no model is asked for."""
        return model is None or self.models is None or model in self.models


def new_key(name: str, models: list[str] | None = None) -> tuple[str, Key]:
    """A fresh secret, to be given away once, and the entry to keep."""
    secret = f"ty_{secrets.token_urlsafe(32)}"
    return secret, Key(
        name=name, sha256=_hash(secret), models=frozenset(models) if models else None
    )


class KeyRing:
    """The keys of a file, read again when the file changes."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._stamp: tuple[int, int] | None = None
        self._keys: list[Key] = []
        self.refresh()

    @property
    def required(self) -> bool:
        """Whether a request needs a key at all."""
        return self._path is not None

    def refresh(self) -> None:
        """Read the file again if it changed.

        Raises:
            UserError: when it cannot be read; the keys stay as they were.
        """
        if self._path is None:
            return
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp != self._stamp:
                self._keys, self._stamp = _read(self._path), stamp
        except OSError as error:
            raise UserError(
                f"keys_file {self._path} cannot be read ({error.strerror}); give the path of a YAML "
                "file with a list of keys"
            ) from error

    def admit(self, authorization: str | None, model: str | None) -> Key | None:
        """The key that a request brought; None when none is required.

        Args:
            authorization: the header, `Bearer KEY`.
            model: what it wants to use.

        Raises:
            RequestError: `unauthorized`, in the same words whether the key is unknown or is not
                for this model.
        """
        if not self.required:
            return None
        scheme, _, secret = (authorization or "").partition(" ")
        digest = _hash(secret.strip() if scheme.lower() == "bearer" else "")
        found = None
        for key in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(key.sha256, digest) and key.opens(model):
                found = key
        if found is None:
            raise RequestError(
                "unauthorized",
                "no API key that may use this; send one as the header `Authorization: Bearer KEY`",
            )
        return found


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> list[Key]:
    import yaml

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
        keys = [Key.model_validate(entry) for entry in entries]
    except (yaml.YAMLError, ValidationError, TypeError, UnicodeDecodeError) as error:
        # Not the text itself: it could hold a secret that somebody put there in the clear.
        raise UserError(
            f"keys_file {path} is no list of keys ({type(error).__name__}); each entry has a `name`, "
            "the `sha256` of the key, and optionally `models`"
        ) from None
    return keys
