"""Imports without garbage collection."""

import gc

import pytest

from trainyard.cluster import without_collection


@pytest.mark.parametrize("was_on", [True, False])
def test_collection_is_off_inside_and_as_before_after_an_error(was_on: bool) -> None:
    """Nothing is frozen: in a notebook, garbage that the user has made must still be collected."""
    inside, frozen = [], gc.get_freeze_count()

    def fails() -> None:
        with without_collection():
            inside.append(gc.isenabled())
            raise ImportError

    try:
        if not was_on:
            gc.disable()
        with pytest.raises(ImportError):
            fails()
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
    assert inside == [False]
    assert gc.get_freeze_count() == frozen
