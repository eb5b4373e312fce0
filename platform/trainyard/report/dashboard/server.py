"""The dashboard over HTTP: pages made afresh from run folders, and nothing else."""

import hashlib
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainyard.report.dashboard import index_page, run_page, sweep_page
from trainyard.report.dashboard.importance import FEWEST, importances
from trainyard.report.dashboard.records import Run
from trainyard.report.dashboard.sweeps import Sweep, Yard
from trainyard.report.kit import policy, render, static_text, vega_bundle
from trainyard.storage import Files

FAST_SECONDS, SLOW_SECONDS = 3.0, 15.0
"""Between two looks of an open page, while something of it runs and otherwise."""

HEADERS = {
    "Content-Security-Policy": policy() + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Dashboard:
    """Pages over one storage path, with what was read of it kept for the next look."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self._files = Files()
        self._lock = threading.Lock()
        self.visited = threading.Event()
        """Set when the first page has been answered."""

    def yard(self) -> Yard:
        """The folders as they are now."""
        return Yard(self.storage, self._files)

    def page(self, key: str, *, site: str | None) -> str | None:
        """The page of a run, a sweep, or everything (key ""); None for a key that names nothing.

        Without a `site` it is one file for keeping: no links, no news.
        """
        with self._lock:  # one at a time: they share what was read
            yard = self.yard()
            if not key:
                known: list[Run | Sweep] = [*yard.sweeps.values(), *yard.runs.values()]
                busy = any(found.status == "running" for found in known)
                return render(
                    "Runs and sweeps",
                    index_page.sections(yard, lambda found: link(found, site)),
                    subtitle=str(self.storage),
                    site=site,
                    refresh_seconds=_pace(site, busy=busy, ends=False),
                )
            if (found := yard.find(key)) is None:
                return None
            crumbs = [("All runs", "/")] if site else []
            if isinstance(found, Sweep):
                parts, kind = sweep_page.sections(found, lambda run: link(run, site)), "Sweep"
            else:
                parts, kind = run_page.sections(found), "Run"
                if found.sweep is not None:
                    kind = "Confirming run" if "/confirmation/" in key else "Trial"
                    kind = f"{kind} of {found.sweep.name}"
                    if site:
                        crumbs.append((found.sweep.name, str(link(found.sweep, site))))
            return render(
                found.name,
                parts,
                subtitle=_subtitle(kind, found),
                status=found.status,
                crumbs=crumbs,
                site=site,
                refresh_seconds=_pace(site, busy=found.status in ("running", "waiting"), ends=True),
            )


def warm_up() -> None:
    """Load what takes seconds to load while the reader looks at the first page, which needs none."""
    vega_bundle()
    importances([({"a": i, "b": -i * i}, float(i)) for i in range(FEWEST)], {})


def link(found: Run | Sweep, site: str | None) -> str | None:
    """Where the page of a run or sweep is; nowhere in a file for keeping."""
    return None if site is None else f"{site}view/{quote(found.key)}"


def _pace(site: str | None, *, busy: bool, ends: bool) -> float:
    if site is None:
        return 0
    return FAST_SECONDS if busy else 0 if ends else SLOW_SECONDS


def _subtitle(kind: str, found: Run | Sweep) -> str:
    task = found.task if isinstance(found, Run) else str(found.record.get("task") or "")
    parts = [kind, f"task {task}" if task else ""]
    if found.started:
        parts.append(time.strftime("started %Y-%m-%d %H:%M:%S", time.localtime(found.started)))
    return ", ".join(part for part in parts if part)


def build_app(dashboard: Dashboard, allowed_hosts: list[str]) -> Any:
    """The pages as an ASGI application; it answers GET and HEAD, and changes nothing.

    `allowed_hosts` are the names under which a browser may ask: another one would be a page on the
    internet whose name was made to lead to this machine.
    """
    from fastapi import FastAPI, Request, Response
    from fastapi.middleware.gzip import GZipMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(title="Trainyard", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(GZipMiddleware, minimum_size=2_000, compresslevel=4)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts)

    def answer(request: Request, text: str, kind: str = "text/html", status: int = 200) -> Response:
        dashboard.visited.set()
        tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
        headers = {**HEADERS, "ETag": tag, "Cache-Control": "no-cache"}
        if status == 200 and request.headers.get("if-none-match", "").removeprefix("W/") == tag:
            return Response(status_code=304, headers=headers)
        return Response(text, status, headers, f"{kind}; charset=utf-8")

    def missing(request: Request, key: str) -> Response:
        page = render(
            "Not here", [], subtitle=f"No run or sweep is called {key}.",
            crumbs=[("All runs", "/")], site="/",
        )  # fmt: skip
        return answer(request, page, status=404)

    @app.api_route("/", methods=["GET", "HEAD"])
    def index(request: Request) -> Response:
        return answer(request, str(dashboard.page("", site="/")))

    @app.api_route("/view/{key:path}", methods=["GET", "HEAD"])
    def view(request: Request, key: str) -> Response:
        page = dashboard.page(key, site="/") if key else None
        return missing(request, key) if page is None else answer(request, page)

    @app.api_route("/page.css", methods=["GET", "HEAD"])
    def css(request: Request) -> Response:
        return answer(request, static_text("page.css"), "text/css")

    @app.api_route("/page.js", methods=["GET", "HEAD"])
    def script(request: Request) -> Response:
        return answer(request, static_text("page.js"), "text/javascript")

    @app.api_route("/vega.js", methods=["GET", "HEAD"])
    def vega(request: Request) -> Response:
        return answer(request, vega_bundle(), "text/javascript")

    @app.exception_handler(404)
    def nothing(request: Request, _: Exception) -> Response:
        return missing(request, request.url.path.strip("/"))

    return app
