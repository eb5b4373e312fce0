"""A prediction does not depend on its neighbors, over many architectures; nor does a reported score."""

from pathlib import Path

import numpy as np
import pytest
from support.architectures import KINDS, TEXT_WORDS, architecture

from trainyard.inference.registry import PREDICTORS

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
