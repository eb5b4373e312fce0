"""FLOPs of a model, and the peak of the device that computes them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from trainyard.models import flops, peak_flops, training_flops


def test_the_flops_of_a_row_are_those_that_torch_counts() -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, num_labels=2, attn_implementation="eager",  # torch counts no fused one
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    counted = []
    for length in (10, 30):
        with FlopCounterMode(display=False) as counter:
            model(input_ids=torch.ones(1, length, dtype=torch.int64))
        head = 2 * 32 * 32 + 2 * 32 * 2  # pooler and classifier, once a row
        counted.append(3 * (counter.get_total_flops() - head))
    found = training_flops(model, np.array([10, 30], np.int32))
    assert found == pytest.approx(np.mean(counted), rel=1e-6)


def test_a_peak_is_measured_once_for_each_number_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flops, "SIZES", (256,))
    cpu = torch.device("cpu")
    first = peak_flops(cpu, "no")
    assert first > 1e8
    peak_flops(cpu, "bf16")
    stored = json.loads((tmp_path / "cache" / flops.PEAKS).read_text())
    assert [key.split(", ")[-2] for key in stored] == ["float32", "bfloat16"]
    monkeypatch.setattr(flops, "_measured", lambda *_: pytest.fail("measured again"))
    assert peak_flops(cpu, "no") == first


def test_a_slow_kind_of_product_is_not_timed_at_large_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    def fastest(rate: float, size: int, *_: object) -> float:
        sizes.append(size)
        return 2 * size**3 / rate

    monkeypatch.setattr(flops, "_fastest_product", partial(fastest, 8e8))
    assert flops._measured(torch.device("cpu"), torch.bfloat16) == pytest.approx(8e8)
    assert sizes == [512]
    sizes.clear()
    monkeypatch.setattr(flops, "_fastest_product", partial(fastest, 2e11))
    assert flops._measured(torch.device("cpu"), torch.float32) == pytest.approx(2e11)
    assert sizes == [512, 1024, 2048]


def test_a_peak_that_was_measured_next_to_other_work_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial's is never stored. A run that is faster than the stored one measures again."""
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flops, "_not_kept", {})
    peaks = iter([2e9, 1e9, 5e9])
    monkeypatch.setattr(flops, "_measured", lambda *_: next(peaks))
    cpu, file = torch.device("cpu"), tmp_path / "cache" / flops.PEAKS
    assert peak_flops(cpu, "no", keep=False) == peak_flops(cpu, "no", keep=False) == 2e9
    assert not file.exists()
    monkeypatch.setattr(flops, "_not_kept", {})  # another process
    assert peak_flops(cpu, "no", reached=0.5e9) == 1e9
    assert peak_flops(cpu, "no", reached=0.9e9) == 1e9
    assert peak_flops(cpu, "no", reached=1.5e9) == 5e9
    assert [*json.loads(file.read_text()).values()] == [5e9]
    assert peak_flops(cpu, "no", reached=1.5e9) == 5e9


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[1.0]", '{"KEY": null}', '{"KEY": ["1e12"]}', '{"KEY": NaN, "other": NaN}',
     '{"KEY": Infinity}', '{"KEY": "1e12"}'],
)  # fmt: skip
def test_a_damaged_file_of_peaks_is_measured_again(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path))
    monkeypatch.setattr(flops, "_not_kept", {})
    monkeypatch.setattr(flops, "_measured", lambda *_: 3e9)
    cpu, file = torch.device("cpu"), tmp_path / flops.PEAKS
    peak_flops(cpu, "no")
    (key,) = json.loads(file.read_text())
    file.write_text(content.replace("KEY", key))
    assert peak_flops(cpu, "no", reached=1e9) == 3e9
    assert json.loads(file.read_text()) == {key: 3e9}


def test_a_gpu_s_peak_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 PCIe")
    gpu = torch.device("cuda")
    assert peak_flops(gpu, "no") == 51e12
    assert peak_flops(gpu, "bf16") == peak_flops(gpu, "fp16") == 756e12
