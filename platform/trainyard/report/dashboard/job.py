"""`trainyard dashboard`: serve the dashboard on this machine, or export one of its pages."""

import contextlib
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.config import StorageFlags
from trainyard.errors import UserError
from trainyard.report.dashboard.server import Dashboard, build_app, warm_up
from trainyard.storage import storage_folder, write_atomic

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class DashboardConfig(StorageFlags):
    """Show runs, sweeps and reports in a browser, while they run and long after.

    It reads the folders below --storage-path and needs nothing else: no Ray, no network. Without
    --export it serves pages until Ctrl-C.
    """

    host: str = "127.0.0.1"
    """Address to listen on. There is no password: any address but this machine's loopback exposes
    all runs to the network."""
    port: int = 8600
    """Port to listen on; 0 chooses a free port."""
    export: str | None = None
    """Write the page of this run or sweep (or SWEEP/trials/TRIAL) to a file instead, and exit."""
    output: str | None = None
    """File for --export. Default: <name>.html in the working directory."""


def run_dashboard(config: DashboardConfig) -> dict[str, Any]:
    """Serve until Ctrl-C or SIGTERM, or export one page; return the job's result.

    Raises:
        UserError: A storage path, name, port or file cannot be used.
    """
    storage = storage_folder(config.storage_path)
    if not storage.is_dir():
        raise UserError(
            f"--storage-path {storage} is not a folder; give the one that runs were written to"
        )
    if config.export is not None:
        return _export(Dashboard(storage), config.export, config.output)
    if config.output is not None:
        raise UserError("--output is the file of an export; add --export NAME, or leave it out")
    return _serve(Dashboard(storage), config)


def _export(dashboard: Dashboard, key: str, output: str | None) -> dict[str, Any]:
    page = dashboard.page(key.strip("/"), site=None) if key.strip("/") else None
    if page is None:
        yard = dashboard.yard()
        names = [*yard.sweeps, *yard.runs]
        listed = f"it holds {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
        raise UserError(
            f"--export {key}: no such run or sweep in {dashboard.storage}; "
            f"{listed if names else 'it is empty'}"
        )
    path = Path(output or f"{Path(key).name}.html").expanduser().absolute()
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(
            f"--output {path} cannot be written ({error.strerror}); give another file"
        ) from error
    return {"job": "dashboard", "exported": key, "file": str(path), "bytes": len(page.encode())}


def _serve(dashboard: Dashboard, config: DashboardConfig) -> dict[str, Any]:
    import uvicorn

    local = config.host in LOOPBACK
    listening = _listen(config)
    port = listening.getsockname()[1]
    shown = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{shown}:{port}/"
    app = build_app(dashboard, [*LOOPBACK, "[::1]"] if local else ["*"])
    dashboard.page("", site="/")  # read all folders before the first request
    threading.Thread(target=_warm_up_later, args=(dashboard,), daemon=True).start()
    if not local:
        print("warning: anyone on the network can read all runs here", file=sys.stderr)  # noqa: T201
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
    with contextlib.suppress(KeyboardInterrupt):  # which SIGTERM raises in a command, too
        print(f"dashboard of {dashboard.storage} at {address} (Ctrl-C stops it)", file=sys.stderr)  # noqa: T201
        server.run(sockets=[listening])
    return {"job": "dashboard", "address": address, "storage_path": str(dashboard.storage)}


def _warm_up_later(dashboard: Dashboard) -> None:
    dashboard.visited.wait()  # else the first page would wait for modules that it does not need
    warm_up()


def _listen(config: DashboardConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((config.host, config.port))
    except (OSError, OverflowError) as error:
        found.close()
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {config.host} --port {config.port} cannot be listened on ({why}); another "
            "dashboard may be running there: choose another --port, or 0 for a free one"
        ) from error
    found.listen(128)
    return found
