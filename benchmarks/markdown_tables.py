"""Markdown tables of stored results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Result = Mapping[str, Any]


def load(name: str, folder: Path = RESULTS) -> Any:
    """Read results/`name`.json."""
    return json.loads((folder / f"{name}.json").read_text())


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def source(*results: Result) -> str:
    """State where the figures of a table come from, a line for each result; equal lines once.

    A result without any of these facts has no line.
    """
    lines = []
    for result in results:
        facts = [f"`{result['command']}`"] if "command" in result else []
        facts += [
            str(result[key]) for key in ("gpu", "processor", "machine", "date") if key in result
        ]
        if "versions" in result:
            facts.append(f"commit {short_commit(result)}")
        if facts:
            lines.append(", ".join(facts) + ".")
    return "\n" + "<br>\n".join(dict.fromkeys(lines)) + "\n" if lines else ""


def short_commit(result: Result) -> str:
    """Abbreviate the commit of a result; `+` at its end stands for uncommitted changes."""
    commit: str = result["versions"]["commit"]
    return commit[:10] + (" with uncommitted changes" if commit.endswith("+") else "")


def percent(share: float) -> str:
    """Format a share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def share(rate: Sequence[float]) -> str:
    """Format a rate with its interval, as percentages."""
    value, low, high = rate
    return f"{percent(value)} ({100 * low:.1f} to {100 * high:.1f})"
