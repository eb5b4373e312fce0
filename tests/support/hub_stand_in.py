"""A small stand-in for the Hub's HTTP interface over a local folder, enough for both libraries.

    <root>/models/<owner>/<name>/…      <root>/datasets/<owner>/<name>/…

It answers what `huggingface_hub` asks: repository info, file listings, metadata by HEAD, files.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


@contextlib.contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `root` on a free port; yields its URL and the list of requests it gets."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            requests.append(f"{self.command} {path}")
            if match := re.fullmatch(
                r"api/(models|datasets)/([^/]+/[^/]+)(/revision/[^/]+)?", path
            ):
                self.info(root / match[1] / match[2], match[2])
            elif match := re.fullmatch(
                r"api/(models|datasets)/([^/]+/[^/]+)/tree/[^/]+/?(.*)", path
            ):
                self.tree(root / match[1] / match[2], match[3])
            elif match := re.fullmatch(r"(?:(datasets)/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self.file(root / (match[1] or "models") / match[2] / match[3])
            else:
                self.missing()

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            path = self.path.strip("/")
            requests.append(f"POST {path}")
            match = re.fullmatch(r"api/(models|datasets)/([^/]+/[^/]+)/paths-info/[^/]+", path)
            if match is None:
                return self.missing()
            asked = json.loads(body)["paths"]
            folder = root / match[1] / match[2]
            found = [entry(folder, folder / name) for name in asked if (folder / name).exists()]
            return self.reply(200, json.dumps(found).encode(), Content_Type="application/json")

        def info(self, folder: Path, name: str) -> None:
            if not folder.is_dir():
                return self.missing()
            files = [{"rfilename": str(p.relative_to(folder))} for p in files_below(folder)]
            body = {"id": name, "sha": COMMIT, "siblings": files, "private": False,
                    "gated": False, "disabled": False, "tags": [], "downloads": 0}  # fmt: skip
            return self.reply(200, json.dumps(body).encode(), Content_Type="application/json")

        def tree(self, folder: Path, below: str) -> None:
            where = folder / below
            if not where.is_dir():
                return self.missing("EntryNotFound" if folder.is_dir() else "RepoNotFound")
            everything = "recursive=True" in self.path or "recursive=true" in self.path
            paths = sorted(where.rglob("*") if everything else where.iterdir())
            body = json.dumps([entry(folder, path) for path in paths]).encode()
            return self.reply(200, body, Content_Type="application/json")

        def file(self, path: Path) -> None:
            if not path.is_file():
                return self.missing("EntryNotFound")
            body = path.read_bytes()
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            return self.reply(200, body, ETag=etag, X_Repo_Commit=COMMIT, Accept_Ranges="none")

        def missing(self, code: str = "RepoNotFound") -> None:
            self.reply(404, b"{}", X_Error_Code=code)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()


def files_below(folder: Path) -> list[Path]:
    """Every file of a repository."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def entry(folder: Path, path: Path) -> dict[str, Any]:
    """A file or folder as the Hub lists it."""
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    oid = hashlib.sha1(path.read_bytes()).hexdigest()
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid}
