"""Rewrite the generated parts of the docs: the flags reference, and the tables of results.

    python docs/generate.py

The tests fail when a page is not what this writes.
"""

import contextlib
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from trainyard.cli import parse
from trainyard.command import JOBS, Job

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from result_tables import rewrite  # noqa: E402

WIDTH = "1000"
"""Columns of a terminal in which every help text is one line."""


def flags() -> str:
    """Write the flags reference: a table for each command."""
    page = [
        "# Flags\n\nThis page is generated from `trainyard COMMAND --help`. Any flag can stand in a "
        "file for `--config FILE.yaml`, without its dashes.\n"
    ]
    for name, job in JOBS.items():
        page.append(f"## {name}\n\n{job.about}\n")
        page.append(
            "```\n" + "".join(f"trainyard {example}\n" for example in job.examples) + "```\n"
        )
        rows = "".join(f"| `{usage}` | {_cell(words)} |\n" for usage, words in flags_of(job))
        page.append(f"| Flag | Meaning |\n| --- | --- |\n{rows}")
    return "\n".join(page)


def flags_of(job: Job) -> Iterator[tuple[str, str]]:
    """Yield the usage and the help text of each flag of a command."""
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
    lines = [line.strip("│") for line in out.getvalue().splitlines()]
    starts = [i for i, line in enumerate(lines) if re.match(r" {1,2}--?[a-z]", line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        usage, _, first = lines[start].strip().partition("  ")
        if usage != "-h, --help":
            words = itertools.takewhile(_is_text, (first, *lines[start + 1 : end]))
            yield usage, " ".join(word.strip() for word in words).strip()


def _is_text(line: str) -> bool:
    return not re.match(r"[ ╰╭]*[-─]{3}", line)


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def pages() -> dict[Path, str]:
    """Return the text of every generated page by its path."""
    tables = (HERE / "benchmarks.md", HERE.parent / "README.md")
    return {HERE / "flags.md": flags(), **{page: rewrite(page.read_text()) for page in tables}}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
