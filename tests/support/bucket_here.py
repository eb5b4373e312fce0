"""Fixtures for tests that need a bucket: one server per module, one empty prefix per test."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.s3_server import BUCKET, KEY, serve


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def url(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an unused URL in the bucket, and set credentials and an empty scratch folder."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1", "TRAINYARD_CACHE": str(tmp_path / "scratch"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
