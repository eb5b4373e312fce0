"""What all tests of serving share."""

import pytest

from trainyard.serving.gateway import keys


@pytest.fixture(autouse=True)
def _keys_files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "SETTLE_SECONDS", 0.0)
