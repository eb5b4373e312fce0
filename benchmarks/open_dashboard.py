"""Measure the time to open the dashboard over many runs, in a browser with an empty cache.

    python benchmarks/open_dashboard.py --rounds 7

Writes 1,000 runs and a sweep of 200 trials, and serves them with `jobs/dashboard.py`. Opens the
first page and the sweep's page in headless Chromium, and measures the seconds to the load event and
to the first drawn figure. Writes benchmarks/results/dashboard.json.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from provenance import provenance

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))


def serve(storage: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the dashboard's job; return its process, and its address once it listens."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs/dashboard.py"), "--storage-path", str(storage), "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"at (http://\S+/) ", line):
            return process, found[1]
    raise SystemExit("the dashboard did not start")


def opened(browser: Any, url: str) -> dict[str, float]:
    """Return the seconds until a page is loaded and until its first figure is drawn."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        started = time.perf_counter()
        page.goto(url, wait_until="load")
        loaded = time.perf_counter() - started
        figures = page.locator("figure")
        if figures.count():
            figures.first.scroll_into_view_if_needed()
            figures.first.locator("svg .mark-group").first.wait_for(state="attached")
        return {"load": loaded, "first_figure": time.perf_counter() - started}


def measure(storage: Path, rounds: int) -> dict[str, Any]:
    """Return medians and raw figures for the first page and the sweep's page."""
    from playwright.sync_api import sync_playwright

    process, address = serve(storage)
    found: dict[str, Any] = {}
    try:
        started = time.perf_counter()
        urllib.request.urlopen(address).read()
        found["first_answer_seconds"] = round(time.perf_counter() - started, 3)
        urllib.request.urlopen(f"{address}vega.js").read()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
                args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                      "--disable-background-networking", "--disable-component-update", "--disable-sync"],
            )  # fmt: skip
            for name, path in (("runs_1000", ""), ("sweep_200", "view/sweep")):
                raw = [opened(browser, f"{address}{path}") for _ in range(rounds)]
                found[name] = {
                    key: {"median": round(statistics.median(r[key] for r in raw), 3),
                          "raw": [round(r[key], 3) for r in raw]}
                    for key in raw[0]
                }  # fmt: skip
            found["chromium"] = browser.version
            browser.close()
    finally:
        process.terminate()
        process.wait(timeout=20)
    return found


def main() -> None:
    """Make the folders, measure, write the results."""
    from support.sample_runs import write_run, write_sweep

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        write_sweep(storage / "sweep", 200)
        for i in range(1000):
            write_run(storage / f"run-{i:04d}", seed=i, started=1.79e9 + 100 * i)
        found = measure(storage, rounds)
    result = {**provenance(), **found}
    (ROOT / "benchmarks/results/dashboard.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
