"""Excerpts of results/transcripts.json: lines of the recorded commands' outputs, for the docs.

`docs/transcripts.py` records the commands. A page has an excerpt between `<!-- transcript: NAME -->`
and `<!-- end -->`; NAME is a key of EXCERPTS. Until there is a recording, such places stay as they are.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from markdown_tables import RESULTS, Result, source

RECORDED = RESULTS / "transcripts.json"
GAP = "…"
"""Stands for lines that an excerpt leaves out."""

LINES: Mapping[str, Mapping[str, str]] = {
    "first-run": {
        "init": r"wrote ",
        "train": r"trained |  validation ",
        "tune": r"tuned |  (best of|compared with) ",
        "serve": r"ready: |  try ",
    },
    "train": {"train": r"step |trained |  "},
    "eval": {"eval": r"evaluated |  "},
    "predict": {"predict": r"predicted ", "answers": r"."},
    "data-doctor": {"data-doctor": r"notice: |examined |  report "},
    "engine": {"engine": r"best engine "},
    "doctor": {"doctor": r"ok |`trainyard "},
    "python": {"python": r"\[\{|\w+ 0\.\d+$"},
    "python-prediction": {"python": r"\[\{"},
    "serve": {"serve": r"ready: |  "},
    "ask": {"ask": r"\[\["},
    "quickstart-answers": {"quickstart": r"POST |  [A-Z]|    |trained "},
    "quickstart": {"quickstart": r"· |step |POST |trained |  |`trainyard "},
}
"""Excerpt -> recorded command -> beginning of the lines that are shown, as a pattern."""


def excerpt(name: str, commands: Mapping[str, Any]) -> str:
    """Format the lines of an excerpt as a block of code; each of several commands is shown above its lines.

    Args:
        name: Key of LINES.
        commands: Recorded commands by name, each with the lines of its `output`.

    Raises:
        ValueError: A pattern finds no line.
    """
    lines: list[str] = []
    for command, pattern in LINES[name].items():
        if lines and lines[-1] == GAP:
            lines.pop()
        if len(LINES[name]) > 1:
            lines.append(f"$ {commands[command]['command']}")
        output = commands[command]["output"]
        shown = [re.match(pattern, line) is not None for line in output]
        if not any(shown):
            raise ValueError(
                f"excerpt {name}: no line of {command} begins with {pattern}; adapt the pattern to "
                "its output in results/transcripts.json"
            )
        for line, is_shown in zip(output, shown, strict=True):
            if is_shown:
                lines.append(line)
            elif lines and lines[-1] != GAP and not lines[-1].startswith("$ "):
                lines.append(GAP)
    if lines[-1] == GAP:
        lines.pop()
    return "```\n" + "".join(f"{line}\n" for line in lines) + "```\n"


def _recording() -> Result:
    result: Result = json.loads(RECORDED.read_text())
    return result


def _stored(name: str) -> str:
    return excerpt(name, _recording()["commands"])


def recorded() -> str:
    """State when and where the commands were recorded."""
    return source(_recording()).lstrip("\n")


def terminal() -> str:
    """Refer to the picture of the recorded terminal, for a page in docs/."""
    commands = _recording()["commands"]
    score = next(line for line in reversed(commands["train"]["output"]) if line.startswith("step "))
    return (
        f"![A terminal, played faster: `{commands['init']['command']}` writes mail.yaml, and "
        f"`{commands['train']['command']}` trains in {commands['train']['seconds']:.0f} seconds "
        f"({score})](assets/terminal.svg)\n"
    )


EXCERPTS: dict[str, Callable[[], str]] = {
    **{name: partial(_stored, name) for name in LINES},
    "recorded": recorded,
    "terminal": terminal,
}
