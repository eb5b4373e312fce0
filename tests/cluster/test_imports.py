"""Imports without garbage collection."""

import gc

import pytest

from trainyard.cluster import without_collection


def test_collection_is_off_inside_and_on_after_an_error() -> None:
    frozen = gc.get_freeze_count()
    inside = []

    def fails() -> None:
        with without_collection():
            inside.append(gc.isenabled())
            raise ImportError

    with pytest.raises(ImportError):
        fails()
    assert inside == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
