"""Record the commands of the README and the quickstart in a terminal, from an empty folder.

    python docs/transcripts.py            # runs them (about a quarter of an hour), and draws the picture
    python docs/transcripts.py --draw     # draws the picture of the stored recording again

Writes benchmarks/results/transcripts.json and docs/assets/terminal.svg. The pages print excerpts
(benchmarks/excerpts.py), which `python docs/generate.py` puts in their places.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]

from excerpts import RECORDED  # noqa: E402
from provenance import provenance  # noqa: E402
from pseudo_terminal import COLUMNS, Terminal  # noqa: E402
from terminal_picture import draw  # noqa: E402

PICTURE = ROOT / "docs" / "assets" / "terminal.svg"
SNIPPET = "first.py"
"""File with the Python snippet of the README."""

COMMANDS = {
    "init": "trainyard init mail.csv",
    "train": "trainyard train --config mail.yaml",
    "tune": "trainyard tune --config mail.yaml --run-name mail-sweep --num-trials 6",
    "eval": "trainyard eval --model-name-or-path runs/mail --validation-file more.csv",
    "predict": "trainyard predict --model-name-or-path runs/mail --input-file more.csv "
    "--output-file answers.csv",
    "answers": "head -n 3 answers.csv",
    "data-doctor": "trainyard data-doctor --train-file mail.csv",
    "engine": "trainyard engine --model-name-or-path runs/mail --validation-file more.csv",
    "doctor": "trainyard doctor --train-file mail.csv --num-workers 2",
    "serve": "trainyard serve --model-name-or-path runs/mail",
    "ask": "curl -s http://localhost:8000/models/mail -H 'Content-Type: application/json' "
    """-d '{"inputs": "Where is my parcel?"}'""",
    "python": f"python {SNIPPET}",
    "quickstart": "trainyard quickstart",
}
"""Name -> command, in the order of the pages. The server of `serve` runs while `ask` does."""

SHOWN = ("init", "train")
"""Commands of the picture; what they wrote is stored with its times."""

LONGEST = 900.0
"""Seconds that a command may take."""


def snippet() -> str:
    """Return the Python code of the README's first hour: train, predict, serve, ask."""
    text = (ROOT / "README.md").read_text()
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    return next(block for block in blocks if "fit(" in block)


def record(folder: Path) -> dict[str, Any]:
    """Run all commands in `folder`; return what each wrote.

    Raises:
        SystemExit: A command failed.
        TimeoutError: A command did not end in time, or the server did not start.
    """
    for name in ("mail.csv", "more.csv"):
        shutil.copy(ROOT / "examples" / name, folder)
    (folder / SNIPPET).write_text(snippet())
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": os.environ["HOME"],
        "LANG": "C.UTF-8",
    }
    commands: dict[str, Any] = {}

    def run(name: str) -> dict[str, Any]:
        began = time.monotonic()
        terminal = Terminal(COMMANDS[name], folder, environment)
        if name == "serve":
            try:
                terminal.wait_for("Ctrl-C", LONGEST)
                commands["ask"] = run("ask")
            finally:
                terminal.interrupt()
        status = terminal.wait(LONGEST)
        seconds = round(time.monotonic() - began, 1)
        if status:
            raise SystemExit(f"{COMMANDS[name]}: status {status}\n" + "\n".join(terminal.lines()))
        found = {"command": COMMANDS[name], "seconds": seconds, "output": terminal.lines()}
        return {**found, "recording": terminal.recording} if name in SHOWN else found

    for name in COMMANDS:
        if name not in commands:
            commands[name] = run(name)
    commands["python"]["code"] = snippet()
    return commands


def main() -> None:
    """Record the commands unless --draw is given; draw."""
    if "--draw" not in sys.argv:
        with tempfile.TemporaryDirectory(prefix="trainyard-") as folder:
            found = {**provenance(), "columns": COLUMNS, "commands": record(Path(folder))}
        RECORDED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    found = json.loads(RECORDED.read_text())
    PICTURE.write_text(draw([found["commands"][name] for name in SHOWN], found["columns"]))


if __name__ == "__main__":
    main()
