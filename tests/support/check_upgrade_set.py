"""Check that this code resumes an upgrade set as the old code did: python check_upgrade_set.py SET.

On a copy of the set, every part is resumed, returned, extended, shown, served or used for
predictions. The outcome must equal the reference in the set: weights bit-exactly, figures to 1e-5.
--checkout checks the code of another checkout, with its .venv. The commit that made the set must
pass.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.upgrade_set import UpgradeError, copy_at_home, say, take_steps

HERE = next(folder for folder in Path(__file__).resolve().parents if (folder / "jobs").is_dir())

CONFIRMATION = "confirmed on rows that the search did not see; two seeds get no verdict"
DELIBERATE = {
    "extended sweep: result: score": CONFIRMATION,
    "extended sweep: result: interval": CONFIRMATION,
    "extended sweep: result: verdict": CONFIRMATION,
}
"""Values that newer code computes differently on purpose, by path, and the reason."""


def differences(reference: Any, found: Any, path: str) -> Iterator[str]:
    """Describe differences. Floats may differ by 1e-5, and `found` may have additional keys."""
    if isinstance(reference, dict) and isinstance(found, dict):
        for key, value in reference.items():
            if key in found:
                yield from differences(value, found[key], f"{path}: {key}")
            else:
                yield f"{path}: {key} is missing"
    elif isinstance(reference, list) and isinstance(found, list) and len(reference) == len(found):
        for i, (old, new) in enumerate(zip(reference, found, strict=True)):
            yield from differences(old, new, f"{path} [{i}]")
    elif isinstance(reference, float) and isinstance(found, float):
        if not math.isclose(reference, found, rel_tol=1e-5, abs_tol=1e-5):
            yield f"{path}: {reference} -> {found}"
    elif reference != found:
        yield f"{path}: {reference!r} -> {found!r}"


def reason_for(change: str) -> str | None:
    return next((DELIBERATE[path] for path in DELIBERATE if change.startswith(path)), None)


def check(folder: Path, checkout: Path, python: Path, only: Sequence[str]) -> list[str]:
    record = json.loads((folder / "set.json").read_text())
    if record["home"] != str(folder / "home"):
        raise UpgradeError(f"the set works only at {Path(record['home']).parent}; move it there")
    if unknown := set(only) - set(record["reference"]):
        raise UpgradeError(f"no steps: {unknown}; the steps are {list(record['reference'])}")
    say(f"a set made by {record['code']}, with the code of {checkout}:")
    with copy_at_home(folder) as home:
        found, failures = take_steps(checkout, python, home, record["commands"], only)
    for step, outcome in found.items():
        changes = list(differences(record["reference"][step], outcome, step))
        wrong = [change for change in changes if not reason_for(change)]
        say(f"{'DIFFERS' if wrong else 'ok':8} {step}")
        for change in changes:
            if reason := reason_for(change):
                say(f"           {change} ({reason})")
        failures += wrong[:8]
        if len(wrong) > 8:
            failures.append(f"{step}: {len(wrong) - 8} more differences")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path)
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP")
    given = parser.parse_args()
    checkout = (given.checkout or HERE).absolute()
    python = checkout / ".venv/bin/python" if given.checkout else Path(sys.executable)
    try:
        failures = check(given.set.absolute(), checkout, python, given.only)
    except UpgradeError as error:
        raise SystemExit(str(error)) from None
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
