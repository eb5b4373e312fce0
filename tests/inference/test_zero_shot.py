"""Zero-shot classification against transformers' own pipeline."""

from pathlib import Path
from typing import Any

import pytest
from support.small_models import classifier, same

from trainyard.errors import UserError
from trainyard.inference.tasks.zero_shot_classification import ZeroShotClassification

TEXTS = ["bab bok unseen", "fed gig", "lom " * 80]
CANDIDATES = ["bab", "fed gig", "nothing of it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("nli"))


@pytest.fixture(scope="module")
def predictor(folder: Path) -> ZeroShotClassification:
    return ZeroShotClassification.load(str(folder))


def listed(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The pipeline's answer in the shape that InferenceClient reads."""
    pairs = zip(answer["labels"], answer["scores"], strict=True)
    return [{"label": label, "score": score} for label, score in pairs]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("template", [{}, {"hypothesis_template": "co {} du"}])
def test_equals_the_pipeline(
    predictor: ZeroShotClassification, folder: Path, multi_label: bool, template: dict[str, str]
) -> None:
    from transformers import pipeline

    oracle = pipeline("zero-shot-classification", model=str(folder))
    options = {"candidate_labels": CANDIDATES, "multi_label": multi_label, **template}
    same(predictor(TEXTS, **options), [listed(answer) for answer in oracle(TEXTS, **options)])
    same(predictor(TEXTS[0], **options), listed(oracle(TEXTS[0], **options)))


@pytest.mark.parametrize("labels", ["bab", "bab, fed", ["only this"]])
def test_few_labels_equal_the_pipeline(
    predictor: ZeroShotClassification, folder: Path, labels: Any
) -> None:
    from transformers import pipeline

    oracle = pipeline("zero-shot-classification", model=str(folder))
    same(predictor("gig", candidate_labels=labels), listed(oracle("gig", candidate_labels=labels)))


@pytest.mark.parametrize("order", [("contradiction", "neutral", "entailment"), ("no", "entails")])
def test_entailment_is_found_by_its_name(tmp_path: Path, order: tuple[str, ...]) -> None:
    from transformers import pipeline

    folder = classifier(tmp_path, order)
    oracle = pipeline("zero-shot-classification", model=str(folder))
    options = {"candidate_labels": CANDIDATES, "multi_label": True}
    ours = ZeroShotClassification.load(str(folder))(TEXTS[0], **options)
    same(ours, listed(oracle(TEXTS[0], **options)))


def test_requests_share_one_forward_pass(predictor: ZeroShotClassification) -> None:
    requests = [
        predictor.preprocess("bab bok", {"candidate_labels": ["fed", "gig"]}),
        predictor.preprocess("lom " * 30, {"candidate_labels": ["nab"], "multi_label": True}),
        predictor.preprocess(["fed", "bab"], {"candidate_labels": "lom,nab,gig"}),
    ]
    rows = [row for request in requests for row in request.rows]
    assert len(rows) == 2 + 1 + 6
    assert {row.group for row in rows} == {""}
    results = iter(predictor.forward(rows))
    for request in requests:
        together = predictor.postprocess(request, [next(results) for _ in request.rows])
        same(together, predictor.postprocess(request, predictor.forward_all(request.rows)))


def test_the_text_is_cut_and_never_the_label(predictor: ZeroShotClassification) -> None:
    request = predictor.preprocess("lom " * 80, {"candidate_labels": ["bab", "fed gig"]})
    assert [row.length for row in request.rows] == [64, 64]
    ending = predictor.tokenizer(" fed gig.", add_special_tokens=False)["input_ids"]
    assert request.rows[1].inputs["input_ids"][-len(ending) - 1 : -1] == ending
    assert request.truncated[0] > 20
    with pytest.raises(UserError, match="only 64 fit"):
        predictor.preprocess("lom " * 80, {"candidate_labels": ["bab"], "truncation": False})
    with pytest.raises(UserError, match="'only_first' cannot cut that much"):
        predictor.preprocess("lom", {"candidate_labels": ["bab " * 90]})


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({}, "parameters.candidate_labels is missing; zero-shot-classification requires it"),
        ({"candidate_labels": []}, "candidate_labels is empty; send at least one label"),
        ({"candidate_labels": " , "}, "candidate_labels is empty"),
        ({"candidate_labels": ["a"], "hypothesis_template": "no"}, r"no \{\} where the label goes"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{:>9999999999}"}, r"no \{\} where"),
    ],
)
def test_a_bad_request_gets_a_sentence(
    predictor: ZeroShotClassification, parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        predictor.preprocess("bab", parameters)


def test_a_model_that_knows_no_entailment_is_refused(tmp_path: Path) -> None:
    folder = classifier(tmp_path, ("bad", "good"))
    with pytest.raises(UserError, match=r"labels \(bad, good\) is entailment"):
        ZeroShotClassification.load(str(folder))
