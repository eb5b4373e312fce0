"""Small stand-in for the Hub's HTTP API over a local folder, for huggingface_hub and datasets.

    <root>/models/<owner>/<name>/…      <root>/datasets/<owner>/<name>/…

It serves repository info, file listings, metadata by HEAD, and files. It accepts uploads of models
with the token `TOKEN`: small files in the commit, large ones by Git LFS.
"""

import base64
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
TOKEN = "hf_stand_in"


@contextlib.contextmanager
def hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `root` on a free port; yield the URL and the list of received requests."""
    requests: list[str] = []
    uploaded: dict[str, bytes] = {}

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
                return self.take(path, body)
            asked = json.loads(body)["paths"]
            folder = root / match[1] / match[2]
            found = [entry(folder, folder / name) for name in asked if (folder / name).exists()]
            return self.reply(200, json.dumps(found).encode(), Content_Type="application/json")

        def do_PUT(self) -> None:
            uploaded[self.path.rpartition("/")[2]] = self.rfile.read(
                int(self.headers["Content-Length"])
            )
            self.reply(200, b"")

        def take(self, path: str, body: bytes) -> None:
            """Answer one request of an upload."""
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.reply(401, b'{"error": "Invalid username or password."}')
            answer: dict[str, Any]
            if path == "api/validate-yaml":
                answer = {"errors": [], "warnings": []}
            elif path == "api/repos/create":
                asked = json.loads(body)
                repository = root / "models" / asked["organization"] / asked["name"]
                requests[-1] += f" {asked['visibility']}"
                answer = {"url": f"{self.url}/{asked['organization']}/{asked['name']}"}
                if repository.is_dir():
                    return self.reply(409, json.dumps(answer).encode())
                repository.mkdir(parents=True)
            elif "/preupload/" in path:
                asked = json.loads(body)["files"]
                files = [
                    {"path": file["path"], "shouldIgnore": False, "oid": None,
                     "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                    for file in asked
                ]  # fmt: skip
                answer = {"files": files}
            elif path.endswith("info/lfs/objects/batch"):
                objects = [
                    {**file, "actions": {"upload": {"href": f"{self.url}/lfs/{file['oid']}"}}}
                    for file in json.loads(body)["objects"]
                ]
                answer = {"transfer": "basic", "objects": objects}
            elif match := re.fullmatch(r"api/models/([^/]+/[^/]+)/commit/main", path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] in ("file", "lfsFile"):
                        value = line["value"]
                        small = base64.b64decode(value.get("content", ""))
                        target = root / "models" / match[1] / value["path"]
                        target.write_bytes(uploaded[value["oid"]] if "oid" in value else small)
                url = f"{self.url}/{match[1]}/commit/{COMMIT}"
                answer = {"commitUrl": url, "commitOid": COMMIT, "success": True}
            else:
                return self.missing()
            return self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")

        @property
        def url(self) -> str:
            return f"http://{self.headers['Host']}"

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
    """List the files of a repository, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def entry(folder: Path, path: Path) -> dict[str, Any]:
    """Describe a file or folder as the Hub's API does."""
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    oid = hashlib.sha1(path.read_bytes()).hexdigest()
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid}
