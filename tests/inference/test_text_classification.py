"""Text classification against transformers' own pipeline, and what holds for every predictor."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from support.small_models import classifier, same
from support.tiny import WORDS

from trainyard.errors import UserError
from trainyard.inference.tasks.text_classification import TextClassification, stored_temperature

TEXTS = ["bab bok unseen", "fed", "gig lom nab " * 9, "It is COL, isn't it?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def predictor(folder: Path) -> TextClassification:
    return TextClassification.load(str(folder))


@pytest.mark.parametrize("function", [None, "sigmoid", "softmax", "none"])
@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_equals_the_pipeline(
    predictor: TextClassification, folder: Path, function: str | None, top_k: int | None
) -> None:
    from transformers import pipeline

    oracle = pipeline("text-classification", model=str(folder))
    options = {"top_k": top_k, "function_to_apply": function}
    same(predictor(TEXTS, **options), oracle(TEXTS, **options))


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("regression", ("score",)),
        ("multi_label_classification", ("a", "b", "c", "d")),
        (None, ("only",)),
        (None, ("no", "yes")),
    ],
)
def test_scores_follow_the_problem_type(
    tmp_path: Path, problem_type: str | None, labels: tuple[str, ...]
) -> None:
    from transformers import pipeline

    model = classifier(tmp_path, labels, problem_type=problem_type)
    oracle = pipeline("text-classification", model=str(model), top_k=None)
    same(TextClassification.load(str(model))(TEXTS), oracle(TEXTS))


def with_length(folder: Path, copy: Path, length: object) -> Path:
    """Copy a model, and store the length of its training as an export does."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "trained_max_length": length}))
    return copy


def test_a_trained_model_reads_as_many_tokens_as_in_training(
    predictor: TextClassification, folder: Path, tmp_path: Path
) -> None:
    trained = TextClassification.load(str(with_length(folder, tmp_path / "model", 16)))
    assert (predictor.max_tokens, trained.max_tokens) == (64, 16)
    text, pair = "bab col " * 20, {"text": "bab " * 20, "text_pair": "col " * 20}
    for inputs in (text, pair):
        prepared = trained.preprocess(inputs)
        assert (prepared.rows[0].length, prepared.truncated[0] > 0) == (16, True)
        with pytest.raises(UserError, match=r"has \d+ tokens and only 16 fit"):
            trained(inputs, truncation=False)
    same(trained(text), predictor("bab col " * 7))
    with pytest.raises(UserError, match="has 42 tokens and only 16 fit"):
        trained(text, truncation="do_not_truncate")
    with pytest.raises(UserError, match="has 92 tokens and only 64 fit"):
        predictor("bab " * 90)
    longer = TextClassification.load(str(with_length(folder, tmp_path / "longer", 512)))
    assert longer.max_tokens == 64
    assert longer.preprocess("bab " * 90).truncated == [28]
    wrong: Any = ["text"]
    with pytest.raises(UserError, match="parameters must be a JSON object"):
        trained.preprocess(text, wrong)


@pytest.mark.parametrize("length", [0, -1, "32", 1.5, True])
def test_a_stored_length_that_is_no_length_is_refused(
    folder: Path, tmp_path: Path, length: object
) -> None:
    model = with_length(folder, tmp_path / "model", length)
    with pytest.raises(
        UserError, match=r"trained_max_length in the model's config.json is .*correct"
    ):
        TextClassification.load(str(model))


def test_a_stored_temperature_divides_the_logits(
    predictor: TextClassification, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/calibration.json").write_text('{"temperature": 2.5, "rows": 37}')
    calibrated = TextClassification.load(str(tmp_path / "model"))
    logits = {
        answer["label"]: answer["score"] for answer in predictor("fed", function_to_apply="none")[0]
    }
    expected = dict(zip(logits, softmax(np.array([*logits.values()]) / 2.5), strict=True))
    found = {answer["label"]: answer["score"] for answer in calibrated("fed")[0]}
    assert found == pytest.approx(expected, abs=1e-6)
    assert calibrated("fed", function_to_apply="none") == predictor("fed", function_to_apply="none")


@pytest.mark.parametrize(
    "temperature", ["0", "-1", "NaN", "Infinity", "1e-300", "21", '"2"', "true", "null", "[1]", "{"]
)
def test_an_absurd_temperature_is_refused(tmp_path: Path, temperature: str) -> None:
    (tmp_path / "calibration.json").write_text(f'{{"temperature": {temperature}}}')
    with pytest.raises(
        UserError, match=r"calibration.json holds the temperature .*from 0.05 to 20"
    ):
        stored_temperature(tmp_path)


def test_a_pair_is_not_its_texts_in_one(predictor: TextClassification, folder: Path) -> None:
    from transformers import pipeline

    pair = {"text": "bab bok", "text_pair": "fed"}
    oracle = pipeline("text-classification", model=str(folder), top_k=None)
    same(predictor(pair), [oracle(pair)])
    assert predictor(pair) != predictor("bab bok fed")


def test_one_input_is_answered_nested_as_the_client_reads_it(
    predictor: TextClassification,
) -> None:
    assert predictor("fed", top_k=1) == predictor(["fed"], top_k=1)
    assert json.loads(json.dumps(predictor("fed")))[0][0].keys() == {"label", "score"}


@given(
    texts=st.lists(
        st.lists(st.sampled_from(WORDS), max_size=50).map(" ".join), min_size=1, max_size=8
    ),
    budget=st.integers(1, 400),
)
@settings(max_examples=40, deadline=None)
def test_a_result_does_not_depend_on_its_batch(
    predictor: TextClassification, texts: list[str], budget: int
) -> None:
    rows = predictor.preprocess(texts).rows
    together = predictor.forward_all(rows, budget)
    for row, result in zip(rows, together, strict=True):
        alone = predictor.forward([row])[0]
        # What is promised of an answer, and of the logits below it what float32 can hold.
        np.testing.assert_allclose(softmax(result), softmax(alone), rtol=0, atol=1e-5)
        np.testing.assert_allclose(result, alone, rtol=1e-5, atol=1e-5)


def test_long_texts_are_refused_or_cut_and_counted(predictor: TextClassification) -> None:
    long, short = "bab " * 100, "fed"
    with pytest.raises(UserError, match=r'has 102 tokens and only 64 fit.*"truncation": true'):
        predictor([short, long])
    prepared = predictor.preprocess([short, long], {"truncation": True})
    assert prepared.truncated == [0, 38]
    assert [row.length for row in prepared.rows] == [3, 64]
    # The tokenizer keeps no memory of it.
    with pytest.raises(UserError, match="only 64 fit"):
        predictor(long)


@pytest.mark.parametrize(
    ("inputs", "parameters", "sentence"),
    [
        (3, {}, "inputs must be a text, not 3"),
        ([], {}, "inputs is an empty list; send at least one input"),
        ([["a", "b"]], {}, r'send a pair as \{"text": …, "text_pair": …\}'),
        ({"txt": "a"}, {}, "an object with text .and text_pair if need be., but it lacks text"),
        ({"text": "a", "text_pair": 1}, {}, "text_pair must be a text, not 1"),
        (["a", {"text": "a", "text_pair": "b"}], {}, "mixes single texts with pairs"),
        ("\ud800", {}, "is not valid Unicode: character 0 is half of a surrogate pair"),
        ("a", {"topk": 1}, "parameters.topk is not a parameter of text-classification; did you mean top_k"),
        ("a", {"top_k": 0}, "parameters.top_k is 0: input should be greater than or equal to 1"),
        ("a", {"top_k": "2"}, "parameters.top_k is '2': input should be a valid integer"),
        ("a", {"function_to_apply": "tanh"}, "parameters.function_to_apply is 'tanh'"),
        ("a", {"top_k": float("nan")}, "must be a JSON object of finite values"),
    ],
)  # fmt: skip
def test_a_bad_request_gets_a_sentence(
    predictor: TextClassification, inputs: Any, parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        predictor.preprocess(inputs, parameters)
    assert "\n" not in str(error.value)


def test_models_that_would_answer_wrongly_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    with pytest.raises(
        UserError, match=r"lacks 2 of the weights .*\(classifier.bias, classifier.w"
    ):
        TextClassification.load(str(tiny_model))
    folder = classifier(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights classifier\.bias hold NaN or infinite"):
        TextClassification.load(str(folder))


def test_nothing_of_a_model_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle gives tensors alone, and a repository's own code stays unread."""
    import torch

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    proof = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (proof,))

    pickled = classifier(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({"classifier.bias": Evil()}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds more than tensors, which could run code"):
        TextClassification.load(str(pickled))

    custom = classifier(tmp_path / "custom")
    config = json.loads((custom / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (custom / "config.json").write_text(json.dumps(config))
    (custom / "own.py").write_text(f"open({str(proof)!r}, 'w')")
    with pytest.raises(UserError, match="need no code from it"):
        TextClassification.load(str(custom))
    assert not proof.exists()
