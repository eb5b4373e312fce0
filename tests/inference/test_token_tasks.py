"""Token classification and fill-mask against transformers' own pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_models import bert, same

from trainyard.errors import UserError
from trainyard.inference.tasks.fill_mask import FillMask
from trainyard.inference.tasks.token_classification import TokenClassification

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = ["Bab unseen bok.", "fed", "Ada lives in London, gig lom nab!"]
LONG = "Ada met bab in London. " * 12


@pytest.fixture(scope="module")
def ner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ner")
    return bert(folder, "ForTokenClassification", id2label=dict(enumerate(NAMES)))


@pytest.fixture(scope="module")
def ner(ner_folder: Path) -> TokenClassification:
    return TokenClassification.load(str(ner_folder))


@pytest.fixture(scope="module")
def mask_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("mlm"), "ForMaskedLM")


@pytest.fixture(scope="module")
def mask(mask_folder: Path) -> FillMask:
    return FillMask.load(str(mask_folder))


def plain(answer: Any) -> Any:
    """The pipeline's numpy numbers as Python's."""
    if isinstance(answer, dict):
        return {key: plain(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [plain(value) for value in answer]
    return answer.item() if isinstance(answer, np.generic) else answer


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("ignored", [None, [], ["O", "LOC", "B-LOC"]])
def test_entities_equal_the_pipeline(
    ner: TokenClassification, ner_folder: Path, strategy: str, ignored: list[str] | None
) -> None:
    from transformers import pipeline

    options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    oracle = pipeline("token-classification", model=str(ner_folder), **options)
    ours = ner(TEXTS, **options)
    same(ours, plain(oracle(TEXTS)))
    same(ner(TEXTS[0], **options), plain(oracle(TEXTS[0])))
    for text, entities in zip(TEXTS, ours, strict=True):
        for entity in entities:
            assert text[entity["start"] : entity["end"]].lower()[0] == entity["word"].strip("# ")[0]


@pytest.mark.parametrize("strategy", ["simple", "max"])
@pytest.mark.parametrize("stride", [0, 20])
def test_long_texts_are_read_whole_by_stride(
    ner: TokenClassification, ner_folder: Path, strategy: str, stride: int
) -> None:
    from transformers import pipeline

    options = {"aggregation_strategy": strategy, "stride": stride}
    oracle = pipeline("token-classification", model=str(ner_folder), **options)
    texts = [LONG, TEXTS[0]]
    same(ner(texts, **options), plain(oracle(texts)))
    request = ner.preprocess(texts, options)
    tokens = len(ner.tokenizer(LONG, add_special_tokens=False)["input_ids"])
    chunks = -(-(tokens - stride) // (62 - stride))
    assert [len(item.rows) for item in request.items] == [chunks, 1]
    assert request.truncated == [0, 0]


def test_without_stride_the_cut_is_reported(ner: TokenClassification) -> None:
    assert ner.preprocess([TEXTS[0], LONG]).truncated[1] > 100
    with pytest.raises(UserError, match="only 64 fit"):
        ner(LONG, truncation=False)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"stride": 5}, "send an aggregation_strategy other than none"),
        ({"stride": 62, "aggregation_strategy": "max"}, "must be less than the 62 tokens of text"),
        ({"aggregation_strategy": "last"}, "parameters.aggregation_strategy is 'last'"),
    ],
)
def test_bad_parameters_get_a_sentence(
    ner: TokenClassification, parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        ner.preprocess("bab", parameters)


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 2}, {"targets": ["bab", "fed", "bab", "zzz"]}, {"targets": "bab", "top_k": 9}],
)
def test_proposals_equal_the_pipeline(
    mask: FillMask, mask_folder: Path, options: dict[str, Any]
) -> None:
    from transformers import pipeline

    oracle = pipeline("fill-mask", model=str(mask_folder))
    texts = ["bab [MASK] bok.", "[MASK]", "a [MASK] and [MASK] unseen"]
    same(mask(texts, **options), oracle(texts, **options))
    for text in texts:
        same(mask(text, **options), oracle(text, **options))


def test_more_proposals_than_words_are_all_words(mask: FillMask) -> None:
    answer = mask("[MASK] bab", top_k=10_000)
    assert len(answer) == len(mask.tokenizer)
    assert sum(proposal["score"] for proposal in answer) == pytest.approx(1, abs=1e-5)


def test_neighbors_change_no_token(ner: TokenClassification, mask: FillMask) -> None:
    for predictor, texts in ((ner, [*TEXTS, LONG]), (mask, ["[MASK]", "bab " * 40 + "[MASK]"])):
        rows = predictor.preprocess(texts).rows
        for row, result in zip(rows, predictor.forward(rows), strict=True):
            np.testing.assert_allclose(result, predictor.forward([row])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "parameters", "sentence"),
    [
        ("bab", {}, r"has no \[MASK\]; put \[MASK\] where a word is to be proposed"),
        ("bab " * 90 + "[MASK]", {"truncation": True}, r"no \[MASK\] left after truncation"),
        ("[MASK]", {"targets": []}, "targets holds no word"),
        ("[MASK]", {"targets": [" "]}, "targets holds no word"),
    ],
)
def test_what_cannot_be_filled_gets_a_sentence(
    mask: FillMask, text: str, parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        mask.preprocess(text, parameters)


@pytest.mark.parametrize("targets", [None, ["bab", "fed", "bok"]])
def test_of_each_mask_no_more_is_kept_than_is_asked_for(mask: FillMask, targets: Any) -> None:
    """A vocabulary for each of a page of masks, from many callers, would fill the memory."""
    request = mask.preprocess("[MASK] " * 50, {"top_k": 2, "targets": targets})
    (tokens, scores), *_ = mask.forward(request.rows)
    assert tokens.shape == scores.shape == (50, 2)
