"""The device of the tests that are marked `gpu`."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def device(request: pytest.FixtureRequest) -> str:
    """`cuda`; with `--device cpu` the tests themselves are tried."""
    import torch

    device: str = request.config.getoption("--device")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; `--device cpu` tries the tests themselves")
    return device
