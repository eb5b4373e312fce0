"""Rewrite the generated parts of the docs: the flags reference, and the tables of results.

    python docs/generate.py

The tests fail when a page is not what this writes.
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

from trainyard.command import JOBS, Job, parse

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from result_tables import rewrite  # noqa: E402

WIDTH = "129"
"""Columns of a terminal too narrow for two groups of flags next to each other."""


def flags() -> str:
    """Write the flags reference: a section for each command, a table for each group of flags."""
    page = [
        "# Flags\n\nThis page is generated from `trainyard COMMAND --help`. Any flag can stand in a "
        "file for `--config FILE.yaml`, without its dashes.\n"
    ]
    for name, job in JOBS.items():
        page.append(f"## {name}\n\n{job.about}\n")
        page.append(
            "```\n" + "".join(f"trainyard {example}\n" for example in job.examples) + "```\n"
        )
        for group, rows in groups_of(job).items():
            table = "".join(f"| `{_cell(usage)}` | {_cell(words)} |\n" for usage, words in rows)
            page.append(f"**{group}**\n\n| Flag | Meaning |\n| --- | --- |\n{table}")
    return "\n".join(page)


def groups_of(job: Job) -> dict[str, list[tuple[str, str]]]:
    """Return usage and help text of each flag of a command, by its group."""
    groups: dict[str, list[tuple[str, str]]] = {}
    rows: list[tuple[str, str]] = []
    for line in help_of(job).splitlines():
        text = line.strip("│")
        if title := re.match(r"(?:╭─ | )([a-z][\w ,/-]*?)[ ─]*╮?$", line):
            rows = groups.setdefault(title[1].capitalize(), [])
        elif re.match(r" {1,2}--?[a-z]", text):
            usage, _, words = text.strip().partition("  ")
            rows.append((usage, words.strip()))
        elif rows and re.match(r" {3,}\S", text):
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {text.strip()}".strip())
    return {
        title: [row for row in rows if not row[0].startswith("-h")]
        for title, rows in groups.items()
        if any(not usage.startswith("-h") for usage, _ in rows)
    }


def help_of(job: Job) -> str:
    """Return the text of --help."""
    out = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):
            parse(job.config_class(), ["--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return out.getvalue()


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def pages() -> dict[Path, str]:
    """Return the text of every generated page by its path."""
    tables = (HERE / "benchmarks.md", HERE.parent / "README.md")
    return {HERE / "flags.md": flags(), **{page: rewrite(page.read_text()) for page in tables}}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
