"""Packed linear layers: torch's own numbers, and few kernels whatever the batches are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_models import every_task

from trainyard.inference.registry import PREDICTORS
from trainyard.models.engines import packed
from trainyard.models.engines.packed import grid, pack_linears


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing on any processor: which ones gain by it is another question."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(packed, "_packable", lambda: {torch.float32})


def packed_layers(model: Any) -> list[bool]:
    """Of each linear layer of a model, whether it is packed."""
    return [
        hasattr(layer, "packed") for layer in model.modules() if isinstance(layer, torch.nn.Linear)
    ]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (1,), (3, 7), (1, 1), (2, 3, 11), (130,), (4, 4, 8)])
def test_a_packed_layer_gives_what_torch_gives(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(48, 20, bias=bias)

    model = Model().requires_grad_(False)
    given = torch.randn(*shape, 48)
    with torch.inference_mode():
        expected = model.layer(given)
        other = pack_linears(model)
        found = other.layer(given)
        turned = other.layer(given.transpose(0, -2))
    assert packed_layers(other) == [True]
    assert packed_layers(model) == [False]
    assert other.layer.weight.data_ptr() == model.layer.weight.data_ptr()
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned, expected.transpose(0, -2), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("here")
def test_every_task_answers_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = every_task(tmp_path)
    for task, cls in PREDICTORS.items():
        ours = cls.load(str(models[task]))
        with monkeypatch.context() as patch:
            patch.setattr(packed, "_packable", lambda: ())
            plain = cls.load(str(models[task]))
        assert not any(packed_layers(plain._run))
        # A model that generates computes a row in many small steps, and is left as it is.
        assert all(packed_layers(ours._run)) != ours.model.can_generate()
        if ours.model.can_generate():
            continue
        body = ours.example
        rows = ours.preprocess([body["inputs"]] * 3, body.get("parameters")).rows
        for mine, theirs in zip(ours.forward(rows), plain.forward(rows), strict=True):
            for one, other in zip(_parts(mine), _parts(theirs), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def _parts(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]


def test_weights_of_other_types_and_other_processors_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(every_task(tmp_path)["text-classification"])
    half = PREDICTORS["text-classification"].load(model, dtype="float16")._run
    assert not any(packed_layers(half))
    amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = packed_layers(PREDICTORS["text-classification"].load(model)._run)
    assert all(found) == amd  # in Intel's own library nothing is to be gained
    packed._packable.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "vendor_id : GenuineIntel")
    assert packed._packable() == frozenset()
    packed._packable.cache_clear()


def test_few_numbers_of_rows_are_ever_computed() -> None:
    sizes = {rows: grid(rows) for rows in range(1, 16_385)}
    assert len(set(sizes.values())) < 50
    for rows, size in sizes.items():
        assert rows <= size <= max(8, 1.25 * rows + 8)
        assert grid(size) == size
    assert [grid(rows) for rows in (0, 1, 2, 25, 33, 65, 129)] == [0, 1, 8, 32, 40, 80, 160]
