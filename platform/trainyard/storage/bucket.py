"""Objects in a bucket (s3://, gs://): whole or absent, replaced only by who knows their version.

obstore and not pyarrow.fs or fsspec: of the three it alone exposes conditional puts (If-None-Match,
If-Match; generations on Google's side), on which leases and commits rest. It brings no dependencies.

Credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL, …, GOOGLE_APPLICATION_CREDENTIALS), or from the machine's own role.
"""

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trainyard.errors import UserError

SCHEMES = {
    "s3": "the bucket's name and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL",
    "gs": "the bucket's name and GOOGLE_APPLICATION_CREDENTIALS",
}
"""Schemes that work, and what to look at when one does not answer."""
CHUNK = 8 * 2**20

Version = dict[str, Any]
"""Which content an object has: changes with every write of another content."""


class Conflict(Exception):  # noqa: N818 (an answer, not a defect)
    """Somebody else has written the object since it was read."""


@dataclass(frozen=True)
class Found:
    """An object as it was read; `modified` by the bucket's clock."""

    content: bytes
    version: Version
    modified: datetime


class Bucket:
    """The objects below a URL. Creating one asks nobody; `impatient` gives up within seconds.

    Raises:
        UserError: from every method, when the storage refuses or does not answer.
    """

    def __init__(self, url: str, *, impatient: bool = False) -> None:
        self.url, self._impatient = url.rstrip("/"), impatient
        self._scheme = url.partition("://")[0]
        if self._scheme not in SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise UserError(
                f"--storage-path {url}: give a folder, or a URL that starts with {known}"
            )

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str]]:
        return Bucket, (self.url,)

    @cached_property
    def _store(self) -> Any:
        from obstore.store import from_url

        patience: Any = {
            "max_retries": 2 if self._impatient else 10,
            "retry_timeout": timedelta(seconds=5 if self._impatient else 180),
        }
        client: Any = {
            "connect_timeout": "3s",
            "timeout": "5s" if self._impatient else "120s",
            "allow_http": True,  # AWS_ENDPOINT_URL alone can ask for it
        }
        with self._asking():
            return from_url(self.url, retry_config=patience, client_options=client)

    def read(self, name: str) -> Found | None:
        """An object, or None when there is none."""
        import obstore

        with self._asking():
            try:
                answer = obstore.get(self._store, name)
                content = bytes(answer.bytes())
            except FileNotFoundError:
                return None
            return Found(content, _version(answer.meta), answer.meta["last_modified"])

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        import obstore

        with self._asking():
            try:
                obstore.head(self._store, name)
            except FileNotFoundError:
                return False
            return True

    def write(
        self, name: str, content: bytes, *, over: Version | Literal["nothing"] | None = None
    ) -> Version:
        """Write an object, durable on return; with `over` only if that is what it holds now.

        Raises:
            Conflict: when it holds something else.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "overwrite" if over is None else "create" if over == "nothing" else over
        with self._asking():
            try:
                written = obstore.put(self._store, name, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                raise Conflict from error
            return _version(written)

    def upload(self, name: str, path: Path) -> None:
        """Write a file as an object, in parts when it is large; it appears whole."""
        import obstore

        with self._asking():
            obstore.put(self._store, name, path, chunk_size=CHUNK)

    def download(self, name: str, path: Path) -> None:
        """Write an object to a file.

        Raises:
            FileNotFoundError: when there is no such object.
        """
        import obstore

        with self._asking(absent_is_fault=False):
            answer = obstore.get(self._store, name)
            with path.open("wb") as file:
                for chunk in answer.stream(min_chunk_size=CHUNK):
                    file.write(chunk)

    def names(self, folder: str) -> list[str]:
        """Names of all objects below `folder`, which joins them."""
        import obstore

        with self._asking():
            return [found["path"] for found in obstore.list(self._store, folder).collect()]

    def delete(self, names: list[str]) -> None:
        """Delete objects; those that are gone already are no fault."""
        import obstore

        with self._asking():
            if names:
                obstore.delete(self._store, names)

    def clock(self) -> datetime:
        """The bucket's own time, which also shows that it can be written, read and deleted."""
        import obstore

        name = f".probe-{uuid.uuid4().hex}"
        with self._asking():
            obstore.put(self._store, name, b"probe")
            now: datetime = obstore.head(self._store, name)["last_modified"]
            obstore.delete(self._store, name)
        return now

    @contextmanager
    def _asking(self, *, absent_is_fault: bool = True) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not absent_is_fault:
                raise
            raise UserError(
                f"--storage-path {self.url} cannot be used ({_reason(error)}); check "
                f"{SCHEMES[self._scheme]}"
            ) from error


def _version(answer: Any) -> Version:
    return {key: answer[key] for key in ("e_tag", "version") if answer[key] is not None}


def _reason(error: Exception) -> str:
    """The storage's own sentence, out of the report that the library makes of it."""
    text = str(error).partition("\n\nDebug source")[0]
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", text) for tag in ("Code", "Message"))
    if code:
        return f"{code[1]}: {message[1]}" if message else code[1]
    where = re.search(r"Error performing \w+ (\w+://[^/ ]+)", text)
    said = " ".join(text.rpartition(" - ")[2].split())[:200].rstrip(":")
    return f"{where[1]}: {said}" if where else said


def replace_own(
    bucket: Bucket, name: str, content: bytes, version: Version, is_own: Callable[[bytes], bool]
) -> Version:
    """Replace an object that this process alone may write, as long as it does.

    A write whose answer was lost is tried again and finds its own first try: that is no conflict.

    Raises:
        Conflict: when it is somebody else's now.
    """
    while True:
        try:
            return bucket.write(name, content, over=version)
        except Conflict:
            found = bucket.read(name)
            if found is None or not is_own(found.content):
                raise
            version = found.version
