"""Embeddings: a real pretrained sentence encoder, transformers' own pipeline, known cosines."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_models import bert, gpt2, same

from trainyard.config import DEFAULT_MODEL
from trainyard.errors import UserError
from trainyard.inference.tasks.embeddings import (
    FeatureExtraction,
    SentenceSimilarity,
    sentence_settings,
)
from trainyard.models.hub import resolve_model

TEXTS = ["That is a happy person", "That is a happy dog", "", "Today is a sunny day"]


@pytest.fixture(scope="module")
def minilm() -> FeatureExtraction:
    return FeatureExtraction.load(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("plain"), "Model")


def test_sentence_vectors_are_those_of_the_models_card(minilm: FeatureExtraction) -> None:
    """Mean pooling over the mask, then length 1: the card of all-MiniLM-L6-v2 says how."""
    import torch
    import transformers

    folder = resolve_model(DEFAULT_MODEL)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    encoding = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**encoding)[0]
    mask = encoding["attention_mask"].unsqueeze(-1).float()
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), p=2, dim=1)
    ours = np.array(minilm(TEXTS))
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)
    assert np.array(minilm(TEXTS[0])).shape == (1, 384)
    raw = np.array(minilm(TEXTS[0], normalize=False))
    assert np.linalg.norm(raw) != pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), ours[:1], atol=1e-5)


@pytest.mark.parametrize("model", ["plain", DEFAULT_MODEL])
def test_token_vectors_equal_the_pipeline(model: str, plain: Path) -> None:
    from transformers import pipeline

    name = str(plain) if model == "plain" else model
    predictor = FeatureExtraction.load(name)
    options = {} if model == "plain" else {"pooling": "none"}
    oracle = pipeline("feature-extraction", model=resolve_model(name))
    same(predictor(TEXTS, **options), oracle(TEXTS))
    same(predictor(TEXTS[0], **options), oracle(TEXTS[0]))


def test_poolings_pick_what_they_say(plain: Path) -> None:
    predictor = FeatureExtraction.load(str(plain))
    tokens = np.array(predictor("bab fed gig")[0])
    for pooling, expected in (
        ("cls", tokens[0]), ("lasttoken", tokens[-1]), ("max", tokens.max(0)), ("mean", tokens.mean(0)),
    ):  # fmt: skip
        np.testing.assert_allclose(
            predictor("bab fed gig", pooling=pooling)[0], expected, atol=1e-5
        )


def test_similar_sentences_are_near(minilm: FeatureExtraction) -> None:
    predictor = SentenceSimilarity.load(DEFAULT_MODEL)
    cosines = predictor({"source_sentence": TEXTS[0], "sentences": TEXTS[1:]})
    vectors = np.array(minilm(TEXTS))
    np.testing.assert_allclose(cosines, vectors[1:] @ vectors[0], atol=1e-5)
    assert cosines[0] > cosines[2] > cosines[1]
    request = {"source_sentence": "a train", "sentences": ["a train"]}
    assert predictor([request, request]) == [[pytest.approx(1, abs=1e-5)]] * 2


def test_prompts_and_limits_come_from_the_model(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    (folder / "1_Pooling").mkdir()
    files: dict[str, Any] = {
        "modules.json": [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "1_Pooling/config.json": {
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": 10},
        "config_sentence_transformers.json": {"prompts": {"query": "bab: "}},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    predictor = FeatureExtraction.load(str(folder))
    same(predictor("fed", prompt_name="query"), predictor("bab: fed"))
    same(predictor("fed"), predictor("fed", pooling="cls", normalize=False))
    with pytest.raises(UserError, match="has 22 tokens and only 10 fit"):
        predictor("fed " * 20)
    words = [f"{word} " for word in ("bab", "fed", "gig")]
    long = words[0] * 9 + words[1] * 9
    same(predictor(long, truncate=True), predictor(words[0] * 8))
    same(predictor(long, truncate=True, truncation_direction="left"), predictor(words[1] * 8))
    with pytest.raises(UserError, match="the model has the prompts query"):
        predictor("fed", prompt_name="passage")
    files["modules.json"].append({"path": "2", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(files["modules.json"]))
    with pytest.raises(UserError, match="makes sentence vectors by Dense, cls, but only"):
        FeatureExtraction.load(str(folder))


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ([{"type": "models.Pooling", "path": "{}/elsewhere"}], "outside the model's folder"),
        ([{"type": "models.Pooling", "path": "../elsewhere"}], "outside the model's folder"),
        ([{"type": "models.Pooling", "path": ""}], "only one pooling of"),
        ([{"type": "models.Pooling"}], "is not a list of modules with type and path"),
        (5, "is not a list of modules"),
        ("not JSON", "modules.json is not valid JSON (Expecting value"),
    ],
)
def test_modules_are_inside_the_model(
    plain: Path, tmp_path: Path, modules: Any, sentence: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/config.json").write_text('{"pooling_mode": "cls"}')
    text = modules if isinstance(modules, str) else json.dumps(modules)
    (folder / "modules.json").write_text(text.replace("{}", str(tmp_path)))
    with pytest.raises(UserError, match=re.escape(sentence)):
        sentence_settings(str(folder))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ("bab", "inputs must be an object with source_sentence and sentences, not str"),
        ({"source_sentence": "a", "sentences": []}, "sentences must be a list of at least one"),
        ({"source_sentence": "a", "sentences": "b"}, "sentences must be a list"),
        ({"source_sentence": 1, "sentences": ["b"]}, "source_sentence must be a text, not 1"),
    ],
)
def test_a_bad_request_gets_a_sentence(plain: Path, inputs: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SentenceSimilarity.load(str(plain)).preprocess(inputs)


def test_dimensions_are_cut_before_vectors_are_scaled(plain: Path) -> None:
    predictor = FeatureExtraction.load(str(plain))
    (whole,) = predictor("fed", pooling="cls")
    (cut,) = predictor("fed", pooling="cls", dimensions=4, normalize=True)
    assert np.linalg.norm(cut) == pytest.approx(1)
    same(cut, (np.array(whole[:4]) / np.linalg.norm(whole[:4])).tolist())
    with pytest.raises(
        UserError, match="dimensions is 33, but the model's vectors have 32 numbers"
    ):
        predictor("fed", dimensions=33)


def test_a_text_without_a_token_is_refused(tmp_path: Path) -> None:
    """Its row would have no place in a pass, and be whatever its neighbors make of it."""
    predictor = FeatureExtraction.load(str(gpt2(tmp_path)))
    assert np.isfinite(predictor("a")).all()
    with pytest.raises(UserError, match="the text has no token that the model knows; send a text"):
        predictor(["a", ""])
