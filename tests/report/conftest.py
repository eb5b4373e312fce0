"""The browser that the tests of pages share."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.browser import BROWSER, chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome: apt-get install chromium")
    with chromium() as found:
        yield found
