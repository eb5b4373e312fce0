"""Imports without garbage collection."""

import gc

import pytest

from trainyard.cluster import without_collection


def test_collection_is_off_inside_and_on_after_an_error() -> None:
    frozen = gc.get_freeze_count()
    with pytest.raises(ImportError), without_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
