"""A copy of the package to which the diffs of docs/extend.md are applied."""

import re
import shutil
import subprocess
from pathlib import Path

from support.job_scripts import ROOT

EXTEND = (ROOT / "docs/extend.md").read_text()
DIFFS: list[str] = re.findall(r"^```diff\n(.*?)^```", EXTEND, re.MULTILINE | re.DOTALL)


def patched(folder: Path) -> Path:
    """Write the copy into `folder`; return the entry of PYTHONPATH that imports it."""
    copy = folder / "platform"
    shutil.copytree(ROOT / "platform", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        subprocess.run(["git", "apply"], cwd=folder, input=diff, text=True, check=True)
    return copy
