"""Local S3 server: localbucket, plus If-Match, deletion of several objects, and a check of keys.

TRAINYARD_TEST_S3=http://HOST:PORT runs the same tests against another server that has `BUCKET`.
"""

import os
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path

from localbucket import S3_NAMESPACE, S3Error, S3Handler, object_etag, sub_element

BUCKET = "trainyard-test"
KEY = "right-key"


class Handler(S3Handler):
    """localbucket's handler, which also checks access keys and If-Match."""

    writing = threading.Lock()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _dispatch(self, action):  # type: ignore[no-untyped-def]
        def checked(bucket: str, key: str) -> None:
            if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
                self._read_body()
                raise S3Error(HTTPStatus.FORBIDDEN, "InvalidAccessKeyId", "No such key is known.")
            action(bucket, key)

        super()._dispatch(checked)

    def _post_request(self, bucket, key):  # type: ignore[no-untyped-def]
        if "delete" not in self.query:
            super()._post_request(bucket, key)
            return
        root = ET.Element("DeleteResult", xmlns=S3_NAMESPACE)
        for wanted in ET.fromstring(self._read_body()).iter(f"{{{S3_NAMESPACE}}}Key"):
            self._object_path(bucket, str(wanted.text)).unlink(missing_ok=True)
            sub_element(ET.SubElement(root, "Deleted"), "Key", str(wanted.text))
        self._send_xml(root)

    def _write_object(self, bucket, key, write):  # type: ignore[no-untyped-def]
        with self.writing:
            wanted = self.headers.get("If-Match")
            if wanted is not None:
                path = self._object_path(bucket, key)
                if not path.is_file():
                    raise S3Error(HTTPStatus.NOT_FOUND, "NoSuchKey", "There is no such key.")
                if object_etag(path) != wanted.strip('"'):
                    raise self._precondition_failed_error()
            return super()._write_object(bucket, key, write)


@contextmanager
def serve(folder: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """Serve `folder`, and create its bucket if it is missing; yield the endpoint."""
    if endpoint := os.environ.get("TRAINYARD_TEST_S3"):
        yield endpoint
        return
    (folder / BUCKET).mkdir(exist_ok=True)
    handler = type("HandlerHere", (Handler,), {"data_root": folder})
    server = ThreadingHTTPServer((address, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
