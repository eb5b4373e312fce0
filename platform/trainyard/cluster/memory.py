"""Deaths of processes for lack of memory, recognized by the words of Ray's errors.

Ray wraps such an error by the path that it takes: a worker's failed health check, an error of the
controller or of a task. The text of the first error is part of each of them.
"""

import re

SMALLER_BATCHES = "--per-device-train-batch-size or --max-length (then with --fresh)"
"""Flags that make the batches of a training smaller; they make it another run."""

_ENDED_BY_RAY = "killed due to the node running low on memory"
_FIGURES = re.compile(r"was (\S+)GB used / (\S+)GB limit")
_ENDED_WITHOUT_REASON = "Worker exit type: SYSTEM_ERROR"


def memory_death(error: object) -> str | None:
    """Describe the death of a process for lack of memory, without a subject: "was ended by Ray …".

    Ray's memory monitor reports the memory of the node. A kill by the kernel leaves no reason, and
    looks like a crash.

    Args:
        error: Error of Ray, or its text.

    Returns:
        None for an error with another cause.
    """
    text = str(error)
    if _ENDED_BY_RAY in text:
        figures = _FIGURES.search(text)
        used = f" ({figures[1]} of {figures[2]} GB used)" if figures else ""
        return f"was ended by Ray because the memory of its node was full{used}"
    if _ENDED_WITHOUT_REASON in text:
        return "was killed or crashed; often the memory of its node was full (dmesg there tells)"
    return None


def memory_remedy(lower: str = SMALLER_BATCHES) -> str:
    """Build the fix for a lack of memory; `lower` names the flags that make batches smaller."""
    return f"run fewer workers on a node, use nodes with more memory, or lower {lower}"
