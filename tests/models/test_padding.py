"""A prediction does not depend on its neighbors, over many architectures; nor does a reported score."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.architectures import KINDS, TEXT_WORDS, architecture
from transformers import AutoConfig, AutoModelForSequenceClassification

from trainyard.inference.registry import PREDICTORS
from trainyard.models import find_padding
from trainyard.models import padding as module

EQUAL = {"fnet", "canine", "mobilebert", "convbert", "gpt2-pad-mismatch"}
TEXTS = [
    "the red signal was never good",
    "the train was late",
    " ".join(TEXT_WORDS),
    " ".join(TEXT_WORDS[::-1]),
    "bad signal",
]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"gpt2-pad-not-resized"}))
def test_a_prediction_does_not_depend_on_its_neighbors(kind: str, tmp_path: Path) -> None:
    predictor = PREDICTORS["text-classification"].load(str(architecture(tmp_path, kind)))
    rows = predictor.preprocess(TEXTS).rows
    alone = np.stack([predictor.forward([row])[0] for row in rows])
    np.testing.assert_allclose(np.stack(predictor.forward_all(rows)), alone, atol=1e-5)
    assert predictor.padding.equal_lengths == (kind in EQUAL)
    assert predictor.padding.side == ("left" if kind == "xlnet" else "right")
    assert (predictor.padding.note is None) == (kind not in {*EQUAL, "xlnet"})


def _tried(kind: str, dtype: torch.dtype) -> bool:
    """Try a model of one output, which is near zero; true when it batches equal lengths only."""
    model_type, sizes = KINDS[kind]
    config = AutoConfig.for_model(model_type, vocab_size=500, num_labels=1, pad_token_id=0, **sizes)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    rows = [{"input_ids": list(range(10, end))} for end in (15, 40)]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.15)
        head = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
        head.bias -= model(torch.tensor([rows[0]["input_ids"]])).logits[0]
    model.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    padding = find_padding(model, rows, {"input_ids": 0}, "right")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    return padding.equal_lengths


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_output_near_zero_is_no_dependence_on_neighbors(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("bert", "roberta", "roformer"):
        assert not _tried(kind, dtype)
    for kind in ("fnet", "mobilebert", "convbert"):
        assert _tried(kind, dtype)
    monkeypatch.setattr(module, "FLOAT32_PARAMETERS", 10)
    monkeypatch.setattr(module, "TOLERANCE", dict.fromkeys(module.TOLERANCE, 1e-4))
    assert _tried("bert", dtype), "each type has its own tolerance"
