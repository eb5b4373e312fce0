"""Take the screenshots of the docs, docs/assets/*.png, of real runs on examples/mail.csv.

    python docs/screenshots.py [--look]

The runs are kept in build/screenshots, so a second call at the same commit draws the pictures only. With
--look these, all other pages and the docs site are also drawn in three widths, light and dark, into
build/screenshots/look, to be looked at. Writes benchmarks/results/screenshots.json: versions, and the
hash of each picture.
"""

import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "docs" / "assets"
WORK = ROOT / "build" / "screenshots"
RUNS = WORK / "runs"
SAMPLES = WORK / "samples"
"""Storage path of the page whose scores are made up."""
RESULT = ROOT / "benchmarks" / "results" / "screenshots.json"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from provenance import provenance  # noqa: E402
from support.browser import chromium, dashboard_of, draw_all, files_of, page_at  # noqa: E402
from support.sample_reports import glue_page  # noqa: E402

from trainyard import EvalConfig, SweepConfig, TrainConfig, evaluate, fit, serve, tune  # noqa: E402
from trainyard.doctor import DataDoctorConfig, examine_data  # noqa: E402

WIDTH, HEIGHT = 1200, 760
"""Pixels of a picture."""
WIDE = {"dashboard": (1440, 760), "compare": (1440, 900)}
"""Picture with a table of many columns -> its pixels, at which the table is not cut."""
WHOLE = ("dashboard",)
"""Pictures of a whole page, as high as it is."""
LARGEST = 150_000
"""Maximum bytes of a picture."""
COLORS = 128
EXACT = 32
"""Most frequent colors of a picture, such as those of backgrounds and text."""
TRIALS = [f"mail-sweep/trials/trial-{index:04d}" for index in range(2)]
PAGES = {
    "dashboard": "/",
    "run": "/view/mail",
    "sweep": "/view/mail-sweep",
    "evaluation": "/report/mail-evaluation",
    "compare": f"/compare?run=mail&{'&'.join(f'run={key}' for key in TRIALS)}",
    "doctor": "/report/mail-doctor",
}
"""Picture -> page of the dashboard."""
OTHER_PAGES = {"trial": f"/view/{TRIALS[0]}"}
SAMPLE_PAGES = {"suite": "/report/suite"}
SERVER_PAGES = {"landing": "/", "docs": "/docs"}
"""Name -> page that only --look draws."""
TOP = {"run": "curves", "evaluation": "classes"}
"""Picture -> section at its upper edge. Default: the top of the page."""


def forget_other_commits(commit: str) -> None:
    """Delete the runs of another commit: today's pages may show what it did not store."""
    stamp = WORK / "commit"
    if WORK.exists() and not (stamp.exists() and stamp.read_text() == commit):
        shutil.rmtree(WORK)
    WORK.mkdir(parents=True, exist_ok=True)
    stamp.write_text(commit)


def runs() -> None:
    """Examine 100 of the mails, train, search and evaluate; the other 100 are new to the models."""
    with (ROOT / "examples" / "mail.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    random.Random(0).shuffle(rows)
    files = {"train": WORK / "mail.csv", "validation": WORK / "new-mail.csv"}
    for path, part in zip(files.values(), (rows[:100], rows[100:]), strict=True):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *part])
    common: dict[str, Any] = {
        "train_file": str(files["train"]), "validation_file": str(files["validation"]),
        "storage_path": str(RUNS), "max_length": 32, "train_batch_size": 8,
        "per_device_train_batch_size": 8,
    }  # fmt: skip
    examine_data(
        DataDoctorConfig(
            train_file=common["train_file"], validation_file=common["validation_file"],
            storage_path=str(RUNS), run_name="mail-doctor", max_length=32,
        )
    )  # fmt: skip
    fit(
        TrainConfig(
            **common, run_name="mail", learning_rate=3e-4, num_train_epochs=5, eval_steps=5,
            logging_steps=1, tags=("docs",),
        )
    )  # fmt: skip
    tune(
        SweepConfig(
            **common, run_name="mail-sweep", num_trials=6, num_train_epochs=2,
            max_train_samples=48, confirm_top=1,
            set=(("learning_rate=loguniform:1e-4:3e-3", "weight_decay=choice:0,0.01,0.1"),),
        )
    )  # fmt: skip
    evaluate(
        EvalConfig(
            model_name_or_path="runs/mail-sweep/model",
            validation_file="new-mail.csv",
            storage_path=str(RUNS),
            run_name="mail-evaluation",
        )
    )


def save(picture: bytes, path: Path) -> None:
    """Write a picture with a palette of `COLORS` colors; its `EXACT` most frequent ones are kept."""
    from io import BytesIO

    from PIL import Image

    image = Image.open(BytesIO(picture)).convert("RGB")
    pixels = np.asarray(image)
    found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    exact = found[counts.argsort()[::-1][:EXACT]]
    rest = image.quantize(COLORS - EXACT, Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*exact.ravel().tolist(), *rest])
    places = np.array(image.quantize(palette=palette, dither=Image.Dither.NONE))
    for place, color in enumerate(exact):  # Pillow's nearest color is an approximate one
        places[(pixels == color).all(axis=2)] = place
    colors = Image.fromarray(places, "P")
    colors.putpalette(palette.getpalette() or [])
    colors.save(path, optimize=True)
    if (size := path.stat().st_size) > LARGEST:
        raise SystemExit(f"{path} has {size:,} bytes, the maximum is {LARGEST:,}; lower COLORS")


def samples() -> None:
    """Write the page of a suite, whose scores are made up."""
    folder = SAMPLES / "suite"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(glue_page(SAMPLES))
    (folder / "glue.json").write_text('{"tasks": []}')


@contextmanager
def pages() -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Serve dashboards and a model; yield the URLs of the pictures, and those of all other pages."""
    with (
        dashboard_of(RUNS) as dashboard,
        dashboard_of(SAMPLES) as reports,
        serve(str(RUNS / "mail"), port=8000) as model,
    ):
        server = model.url.split("/models/")[0]

        def under(address: str, paths: dict[str, str]) -> dict[str, str]:
            return {name: address + path for name, path in paths.items()}

        others = under(dashboard, OTHER_PAGES) | under(reports, SAMPLE_PAGES)
        yield (
            under(dashboard, PAGES) | {"playground": f"{server}/playground#mail"},
            others | under(server, SERVER_PAGES),
        )


@contextmanager
def site() -> Iterator[dict[str, str]]:
    """Build and serve the docs site; yield the URLs of its pages, named `site-…`."""
    build = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(ROOT / "mkdocs.yml")]
    subprocess.run(build, check=True)
    with files_of(ROOT / "build" / "docs") as address:
        names = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
        yield {f"site-{name}": f"{address}/{name}.html" for name in names}


def prepare(page: Any, name: str) -> None:
    """Prepare a page for its picture: draw figures, click, scroll."""
    if name == "playground":
        page.locator("#examples button").nth(1).click()
        page.locator(".bar").first.wait_for()
        page.get_by_label("Python").check()
    elif name == "docs":
        page.locator(".opblock").first.wait_for()
    elif not name.startswith("site-"):
        draw_all(page)
        # Not into view of an element at the top: it would cut the line above it.
        scroll = "id => id ? document.getElementById(id).scrollIntoView() : scrollTo(0, 0)"
        page.evaluate(scroll, TOP.get(name))


def look(browser: Any, urls: dict[str, str]) -> None:
    """Draw whole pages in three widths, light and dark, into build/screenshots/look."""
    folder = WORK / "look"
    folder.mkdir(exist_ok=True)
    for name, url in urls.items():
        for width in (390, 800, 1280):
            for scheme in ("light", "dark"):
                view = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
                with page_at(browser, url, **view) as page:
                    prepare(page, name)
                    page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)


def main() -> None:
    """Draw and store every picture; with --look, also draw every page for a look at it."""
    found = provenance()
    forget_other_commits(str(found["versions"]["commit"]))
    os.chdir(WORK)  # pages show paths below the working directory from there
    runs()
    if "--look" in sys.argv:
        samples()
    with chromium() as browser, pages() as (urls, others):
        for name, url in urls.items():
            width, height = WIDE.get(name, (WIDTH, HEIGHT))
            with page_at(browser, url, viewport={"width": width, "height": height}) as page:
                prepare(page, name)
                save(page.screenshot(full_page=name in WHOLE), ASSETS / f"{name}.png")
        if "--look" in sys.argv:
            with site() as docs:
                look(browser, {**urls, **others, **docs})
    pictures = {
        f"{name}.png": hashlib.sha256((ASSETS / f"{name}.png").read_bytes()).hexdigest()
        for name in urls
    }
    RESULT.write_text(json.dumps({**found, "pictures": pictures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
