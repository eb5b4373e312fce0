"""Dashboard over HTTP: read-only pages, rendered from run folders at each request."""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from trainyard.report.dashboard import index_page, run_page
from trainyard.report.dashboard.records import Report, Run, Sweep, Yard
from trainyard.report.kit import policy, render, static_text, vega_bundle
from trainyard.storage import Files
from trainyard.summary import short

if TYPE_CHECKING:
    from fastapi import FastAPI

FAST_SECONDS, SLOW_SECONDS = 3.0, 15.0
"""Seconds between two updates of an open page on which a job runs, and of an idle index."""

HEADERS = {
    "Content-Security-Policy": policy() + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every response."""
SANDBOX = {
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads; default-src 'none'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
}
"""Headers of a report, which is not trusted: its page has no origin and no network access."""
SHARED: dict[str, tuple[str, Callable[[], str]]] = {
    "page.css": ("text/css", lambda: static_text("page.css")),
    "page.js": ("text/javascript", lambda: static_text("page.js")),
    "vega.js": ("text/javascript", vega_bundle),
}
"""File that all pages load -> media type, and function that returns its content."""


class Dashboard:
    """Pages over one storage path, with a cache of the files that were read."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self._files = Files()
        self._lock = threading.Lock()
        self.visited = threading.Event()
        """Set when the first response is built."""

    def yard(self) -> Yard:
        return Yard(self.storage, self._files)

    def page(self, key: str, *, site: str | None) -> str | None:
        """Render the page of a run or sweep, or the index for the key "".

        Returns None for an unknown key.

        Args:
            key: Key as in `Yard.find`, or "".
            site: URL prefix of the server; None for a single file, without links and updates.
        """
        with self._lock:  # pages share the cache
            yard = self.yard()
            if not key:
                everything: list[Run | Sweep] = [*yard.sweeps.values(), *yard.runs.values()]
                busy = any(found.status == "running" for found in everything)
                return render(
                    "Runs and sweeps",
                    index_page.sections(
                        yard, lambda found: link(found, site), f"{site}compare" if site else ""
                    ),
                    subtitle=short(str(self.storage)),
                    site=site,
                    refresh_seconds=_pace(site, busy=busy) or (SLOW_SECONDS if site else 0),
                )
            if (found := yard.find(key)) is None:
                return None
            crumbs = [("All runs", "/")] if site else []
            if isinstance(found, Sweep):
                from trainyard.report.dashboard import sweep_page  # loads altair, which is slow

                parts = sweep_page.sections(
                    found, lambda run: link(run, site), f"{site}compare" if site else ""
                )
                kind = "Sweep"
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
                refresh_seconds=_pace(site, busy=found.status in ("running", "waiting")),
            )

    def comparison(self, keys: Sequence[str], *, site: str) -> str | None:
        """Render several runs on one page; return None if one of the keys is not a run."""
        with self._lock:
            yard = self.yard()
            runs = [
                found for key in dict.fromkeys(keys) if isinstance(found := yard.find(key), Run)
            ]
            if not runs or len(runs) < len(set(keys)):
                return None
            shown = runs[: index_page.MOST_COMPARED]
            left_out = ", ".join(run.key for run in runs[index_page.MOST_COMPARED :])
            limit = f"At most {index_page.MOST_COMPARED} runs can be compared at once"
            return render(
                f"{len(shown)} runs compared",
                index_page.comparison(shown, lambda run: link(run, site)),
                subtitle=f"{limit}. Left out: {left_out}." if left_out else "",
                crumbs=[("All runs", "/")],
                site=site,
                refresh_seconds=_pace(site, busy=any(run.status == "running" for run in shown)),
            )

    def report(self, name: str) -> str | None:
        """Return the HTML of a report, or None for an unknown name."""
        with self._lock:
            found = self.yard().reports.get(name)
            return self._files.text(found.path / "report.html", MAX_REPORT) if found else None


MAX_REPORT = 32_000_000
"""Maximum characters of a report that is served."""


def warm_up() -> None:
    """Load slow modules while the reader looks at the first page, which does not need them."""
    from trainyard.report.dashboard.sweep_charts import MIN_TRIALS, importances

    vega_bundle()
    importances([({"a": i, "b": -i * i}, float(i)) for i in range(MIN_TRIALS)], {})


def link(found: Run | Sweep | Report, site: str | None) -> str | None:
    """Return the URL of the page of a run, sweep or report; None without a `site`."""
    if site is None:
        return None
    return f"{site}{'report' if isinstance(found, Report) else 'view'}/{quote(found.key)}"


def _pace(site: str | None, *, busy: bool) -> float:
    return FAST_SECONDS if site and busy else 0


def _subtitle(kind: str, found: Run | Sweep) -> str:
    parts = [kind, f"data set {found.data}" if found.data else ""]
    if found.started:
        parts.append(time.strftime("started %Y-%m-%d %H:%M:%S", time.localtime(found.started)))
    return ", ".join(part for part in parts if part)


def build_app(dashboard: Dashboard, allowed_hosts: Sequence[str]) -> "FastAPI":
    """Build the ASGI application; it is read-only and answers GET and HEAD.

    Args:
        dashboard: Pages to serve.
        allowed_hosts: Accepted values of the header Host. Another value may belong to a page on the
            internet whose name was made to resolve to this machine (DNS rebinding).
    """
    from fastapi import FastAPI, Request, Response
    from fastapi.middleware.gzip import GZipMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(title="Trainyard", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(GZipMiddleware, minimum_size=2_000, compresslevel=4)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))
    get = ["GET", "HEAD"]

    def answer(request: Request, text: str, kind: str = "text/html", status: int = 200) -> Response:
        dashboard.visited.set()
        tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
        headers = {**HEADERS, "ETag": tag, "Cache-Control": "no-cache"}
        if status == 200 and request.headers.get("if-none-match", "").removeprefix("W/") == tag:
            return Response(status_code=304, headers=headers)
        return Response(text, status, headers, f"{kind}; charset=utf-8")

    def missing(request: Request, key: str) -> Response:
        page = render(
            "Not found", [], subtitle=f"No run, sweep or report is called {key}.",
            crumbs=[("All runs", "/")], site="/",
        )  # fmt: skip
        return answer(request, page, status=404)

    @app.api_route("/", methods=get)
    def index(request: Request) -> Response:
        return answer(request, str(dashboard.page("", site="/")))

    @app.api_route("/view/{key:path}", methods=get)
    def view(request: Request, key: str) -> Response:
        page = dashboard.page(key, site="/") if key else None
        return missing(request, key) if page is None else answer(request, page)

    @app.api_route("/compare", methods=get)
    def compare(request: Request) -> Response:
        keys = request.query_params.getlist("run")
        page = dashboard.comparison(keys, site="/") if keys else None
        return missing(request, ", ".join(keys)) if page is None else answer(request, page)

    @app.api_route("/report/{name}", methods=get)
    def report(request: Request, name: str) -> Response:
        if (page := dashboard.report(name)) is None:
            return missing(request, name)
        response = answer(request, page)
        response.headers.update(SANDBOX)
        return response

    @app.api_route("/{file}", methods=get)
    def shared(request: Request, file: str) -> Response:
        if file not in SHARED:
            return missing(request, file)
        kind, text = SHARED[file]
        return answer(request, text(), kind)

    @app.exception_handler(404)
    def nothing(request: Request, _: Exception) -> Response:
        return missing(request, request.url.path.strip("/"))

    return app
