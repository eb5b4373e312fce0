"""Pages in headless Chromium, driven by Playwright, and checks that every page must pass.

Playwright is in the `dev` extra. The browser is the system's chromium or google-chrome, since
Playwright's own would have to be downloaded.
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from trainyard.report.dashboard.job import LOOPBACK, DashboardConfig, _listen
from trainyard.report.dashboard.server import Dashboard, build_app, warm_up

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                  "--disable-background-networking", "--disable-component-update", "--disable-sync"],
        )  # fmt: skip
        yield found
        found.close()


class _Quiet(SimpleHTTPRequestHandler):
    """A server of files that logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def files_of(folder: Path) -> Iterator[str]:
    """Serve the files of a folder, as `python -m http.server` does; yield the origin."""
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{files.server_port}"
        files.shutdown()


@contextmanager
def dashboard_of(storage: Path) -> Iterator[str]:
    """Serve a dashboard over a storage path; yield its address."""
    import uvicorn

    warm_up()
    listening = _listen(DashboardConfig(port=0))
    app = build_app(Dashboard(storage), list(LOOPBACK))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


@contextmanager
def page_at(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """Open a page, which must leave its console empty and send requests only to its own server."""
    complaints: list[str] = []
    with browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}) as opened:
        page = opened.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda r: complaints.append(f"{r.url} {r.failure}"))
        own = url if url.startswith("file:") else urljoin(url, "/")
        page.on(
            "request", lambda r: complaints.append(r.url) if not r.url.startswith(own) else None
        )
        page.goto(url)
        yield page
        said = [text for text in complaints if not text.startswith("data:")]
    assert not said


def draw_all(page: Any) -> int:
    """Scroll to each figure, and wait until it is drawn; return the number of figures."""
    figures = page.locator("figure")
    for i in range(figures.count()):
        # In one call: Playwright's own scrolling fails if an update replaces the figure meanwhile.
        figures.nth(i).evaluate("figure => figure.scrollIntoView()")
        figures.nth(i).locator("svg .mark-group").first.wait_for(state="attached", timeout=20_000)
    return int(figures.count())


FAULTS = Path(__file__).with_name("accessibility.js").read_text()


def accessibility_faults(page: Any) -> list[str]:
    """List faults in names, headings, tables, ids and contrast, and the violations of axe-core."""
    from axe_playwright_python.sync_playwright import Axe

    found: list[str] = page.evaluate(FAULTS)
    for rule in Axe().run(page).response["violations"]:
        found += [f"axe {rule['id']}: {node['html'][:120]}" for node in rule["nodes"]]
    return found
