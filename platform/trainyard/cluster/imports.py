"""Faster imports of large packages."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Switch garbage collection off inside the block, which is for imports.

    Imports make hundreds of thousands of objects and little garbage, so collection takes a sixth of
    their time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
