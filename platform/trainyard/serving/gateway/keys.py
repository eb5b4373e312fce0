"""API keys: stored as hashes, valid for some models or for all, compared in constant time.

    - name: reporting
      sha256: 9f86d0…
      models: [sentiment]     # left out: all models
      requests_per_minute: 600
      concurrent_requests: 32

A key has 32 random bytes. Unlike a password, it cannot be guessed from its plain SHA-256.
"""

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator

from trainyard.errors import UserError
from trainyard.serving.errors import RequestError
from trainyard.serving.options import LOOPBACK, Strict

SETTLE_SECONDS = 1.0
"""Seconds that a keys file must stay unchanged before it is used. A partly written file may end
after a key's hash and before its `models`, and the key would open all models."""


class Key(Strict):
    """Entry of a keys file; its quotas apply to each gateway replica."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    models: frozenset[str] | None = None
    requests_per_minute: float | None = Field(default=None, ge=1)
    concurrent_requests: int | None = Field(default=None, ge=1)

    @field_validator("models", mode="before")
    @classmethod
    def _no_null(cls, models: Any) -> Any:
        """Refuse `models:` without a list, which would open all models."""
        if models is None:
            raise ValueError("give a list, or leave the key `models` out for all models")
        return models

    def opens(self, model: str | None) -> bool:
        """Return whether the key may use `model`; None is a request that names no model."""
        return model is None or self.models is None or model in self.models


def new_key(name: str, models: list[str] | None = None) -> tuple[str, Key]:
    """Make an API key; return the secret for its user, and the entry for the keys file.

    Args:
        name: Name of the key.
        models: Models that the key may use; an empty list opens none. Default: all models.
    """
    secret = f"ty_{secrets.token_urlsafe(32)}"
    entry: dict[str, Any] = {"name": name, "sha256": _hash(secret)}
    if models is not None:
        entry["models"] = models
    return secret, Key.model_validate(entry)


class KeyRing:
    """Keys of a file; `refresh` reads the file again after a change.

    The constructor waits until the file has been unchanged for `SETTLE_SECONDS`.

    Args:
        path: Keys file; None requires no key.

    Raises:
        UserError: The file cannot be read, or is not a list of keys.
    """

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._stamp: tuple[int, ...] | None = None
        self._changed: tuple[tuple[int, ...], float] | None = None
        self._keys: list[Key] = []
        while self._path is not None and self._stamp is None:
            self.refresh()
            time.sleep(0 if self._stamp else SETTLE_SECONDS / 5)

    @property
    def required(self) -> bool:
        """True if requests need a key."""
        return self._path is not None

    def refresh(self) -> None:
        """Read the file again once it has changed and then stayed unchanged for `SETTLE_SECONDS`.

        Raises:
            UserError: The file cannot be read, or its content is not a list of keys. Invalid
                content is reported once per change. The former keys stay valid.
        """
        if self._path is None:
            return
        try:
            stamp, now = _stamp(self._path), time.monotonic()
            if stamp == self._stamp:
                return
            if self._changed is None or self._changed[0] != stamp:
                self._changed = stamp, now
            if now - self._changed[1] < SETTLE_SECONDS:
                return
            try:
                keys = _read(self._path)
            except UserError:
                self._stamp = stamp  # read it again after the next change
                raise
            if _stamp(self._path) == stamp:  # else the file changed while it was read
                self._keys, self._stamp, self._changed = keys, stamp, None
        except OSError as error:
            raise _unreadable(self._path, error) from error

    def admit(self, authorization: str | None, model: str | None) -> Key | None:
        """Return the key of a request, or None when no key is required.

        Args:
            authorization: Value of the header, `Bearer KEY`; None if the request has none.
            model: Model that the request names, or None.

        Raises:
            RequestError: No key that may use `model` was sent (`unauthorized`). The sentence is the
                same for an unknown key and for a key of other models.
        """
        if not self.required:
            return None
        scheme, _, secret = (authorization or "").partition(" ")
        digest = _hash(secret.strip() if scheme.lower() == "bearer" else "")
        found = None
        for key in self._keys:  # compare all keys: the time must not depend on the match
            if hmac.compare_digest(key.sha256, digest) and key.opens(model):
                found = key
        if found is None:
            raise RequestError(
                "unauthorized",
                "no API key that may use this; send one as the header `Authorization: Bearer KEY`",
            )
        return found


def check_exposure(keys_file: str | None, host: str, *, remedy: str) -> None:
    """Refuse to listen on an address that other machines can reach, without API keys.

    Args:
        keys_file: Path of the keys file, which is read once; None requires no key.
        host: Address to listen on.
        remedy: End of the sentence for an exposed address.

    Raises:
        UserError: No key is required, and `host` is not a loopback address. Or the file cannot be
            read, or is not a list of keys.
    """
    if not keys_file:
        if host not in LOOPBACK:
            raise UserError(f"Serve listens on {host} and there are no API keys; {remedy}")
        return
    path = Path(keys_file)
    try:
        _read(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"keys_file {path} cannot be read ({error.strerror}); give the path of a YAML file with a list "
        "of keys"
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> list[Key]:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
        return [Key.model_validate(entry) for entry in entries]
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        # Do not quote the file: it may hold a secret in plain text.
        raise UserError(
            f"keys_file {path} is not a valid list of keys ({type(error).__name__}); each entry has a "
            "`name`, the `sha256` of the key, and optionally `models`, `requests_per_minute` and "
            "`concurrent_requests`"
        ) from None
