"""Rows whose text is missing, damaged, or the same twice."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from trainyard.doctor.data.rows import Rows

_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\\ufeff\\ufffe]")

FAULTS: dict[str, Callable[[tuple[str, ...]], bool]] = {
    "empty": lambda texts: any(not text.strip() for text in texts),
    "same_text_twice": lambda texts: len(texts) == 2 and texts[0].strip() == texts[1].strip(),
    "control_characters": lambda texts: any(_CONTROL.search(text) for text in texts),
    "undecodable": lambda texts: any("\ufffd" in text for text in texts),
}
"""What can be wrong with the texts of one row, told from the row alone."""


def faulty_texts(splits: Sequence[Rows], examples: int) -> dict[str, Any]:
    """For each split, rows by fault, with examples."""
    found: dict[str, Any] = {}
    for rows in splits:
        found[rows.name] = {}
        for name, is_faulty in FAULTS.items():
            hits = [i for i, texts in enumerate(rows.exact) if is_faulty(texts)]
            found[rows.name][name] = {
                "rows": len(hits),
                "examples": [rows.row(i) for i in hits[:examples]],
            }
    return found
