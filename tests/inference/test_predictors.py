"""What holds for every row of PREDICTORS: examples, schemas, threads, positions."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.small_models import bert, byte_level, classifier, encoder_decoder, gpt2

from trainyard.errors import UserError
from trainyard.inference.parameters import json_schema
from trainyard.inference.predictor import Predictor
from trainyard.inference.registry import PREDICTORS, task_of
from trainyard.inference.tasks.text_classification import TextClassification
from trainyard.models import build_model
from trainyard.tasks import get_task

MODELS: dict[str, Any] = {
    "text-classification": classifier,
    "zero-shot-classification": classifier,
    "token-classification": lambda folder: bert(folder, "ForTokenClassification"),
    "question-answering": lambda folder: bert(folder, "ForQuestionAnswering"),
    "fill-mask": lambda folder: bert(folder, "ForMaskedLM"),
    "summarization": lambda folder: encoder_decoder(folder, "Bart"),
    "translation": lambda folder: encoder_decoder(folder, "T5"),
    "text2text-generation": lambda folder: encoder_decoder(folder, "T5"),
    "text-generation": gpt2,
    "feature-extraction": lambda folder: bert(folder, "Model"),
    "sentence-similarity": lambda folder: bert(folder, "Model"),
}


@pytest.fixture(scope="module", params=sorted(PREDICTORS))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    task = request.param
    folder = MODELS[task](tmp_path_factory.mktemp(task))
    return folder, PREDICTORS[task].load(str(folder))


def test_every_task_answers_its_own_example_in_json(loaded: tuple[Path, Predictor]) -> None:
    _, predictor = loaded
    answer = predictor(predictor.example["inputs"], **predictor.example.get("parameters", {}))
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_lists_give_a_list_and_no_answer_depends_on_another(
    loaded: tuple[Path, Predictor],
) -> None:
    """Two requests and a list of both: the same answers (numbers to 1e-5)."""
    _, predictor = loaded
    inputs, parameters = predictor.example["inputs"], predictor.example.get("parameters", {})
    prepared = predictor.preprocess([inputs, inputs, inputs], parameters)
    assert len(prepared.items) == len(prepared.truncated) == 3
    answers = predictor.postprocess(prepared, predictor.forward_all(prepared.rows, 1))
    again = predictor.postprocess(prepared, predictor.forward_all(prepared.rows))
    assert len(answers) == 3
    assert rounded(answers) == rounded(again)


def rounded(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {key: rounded(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [rounded(value) for value in answer]
    return pytest.approx(answer, abs=1e-5) if isinstance(answer, float) else answer


def test_the_architecture_tells_the_task(loaded: tuple[Path, Predictor]) -> None:
    folder, predictor = loaded
    shared = {
        "zero-shot-classification": "text-classification",
        "sentence-similarity": "feature-extraction",
        "summarization": "text2text-generation",
        "translation": "text2text-generation",
    }
    assert task_of(str(folder)) == shared.get(predictor.task, predictor.task)


def test_every_parameter_is_described(loaded: tuple[Path, Predictor]) -> None:
    schema = json_schema(loaded[1].parameters)
    assert schema["additionalProperties"] is False
    assert all(field["description"] for field in schema["properties"].values())


def test_an_architecture_without_a_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    with pytest.raises(
        UserError, match="is a ViTForImageClassification, which does not determine the task"
    ):
        task_of(str(tmp_path))


def test_threads_do_not_disturb_each_others_truncation(tmp_path: Path) -> None:
    """Fast tokenizers keep truncation as state; a server tokenizes in many threads."""
    predictor = TextClassification.load(str(classifier(tmp_path)))

    def right(i: int) -> bool:
        words = 30 + i % 60
        if i % 2:
            row = predictor.preprocess("bab " * words, {"truncation": True}).rows[0]
            return row.length == min(words + 2, 64)
        try:
            return predictor.preprocess("bab " * words).rows[0].length == words + 2
        except UserError:
            return words + 2 > 64

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(right, range(400)))


def test_positions_that_a_model_reserves_are_not_used(tmp_path: Path) -> None:
    """RoBERTa counts positions from the padding token's id on: 40 of them are for 38 tokens."""
    import torch
    import transformers

    tokenizer = byte_level()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, pad_token_id=1,
            num_attention_heads=2, intermediate_size=32, max_position_embeddings=40, num_labels=3,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    predictor = TextClassification.load(str(tmp_path))
    assert predictor.max_tokens == 38
    assert predictor("a" * 38)
    with pytest.raises(UserError, match="has 39 tokens and only 38 fit"):
        predictor("a" * 39)


@pytest.mark.parametrize(
    "way", ["../elsewhere/model.safetensors", "{}/elsewhere/model.safetensors"]
)
def test_weights_outside_the_models_folder_are_not_read(tmp_path: Path, way: str) -> None:
    """Transformers joins what an index of weights names to the folder's path, whatever it is."""
    from safetensors import safe_open

    model, elsewhere = classifier(tmp_path / "model"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    with safe_open(model / "model.safetensors", "np") as file:
        names = list(file.keys())
    (model / "model.safetensors").rename(elsewhere / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, way.format(tmp_path))}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    for load in (TextClassification.load, lambda name: build_model(name, get_task("mrpc"), seed=0)):
        with pytest.raises(UserError, match="are not a safetensors file in the model's own folder"):
            load(str(model))
    # The same index over the same weights is fine inside.
    (elsewhere / "model.safetensors").rename(model / "part-1.safetensors")
    index["weight_map"] = dict.fromkeys(names, "part-1.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert TextClassification.load(str(model))("bab")
    (model / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="is not a valid index of weights"):
        TextClassification.load(str(model))


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(tmp_path: Path) -> None:
    import transformers

    folder = bert(tmp_path, "ForMaskedLM")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    knows = len(tokenizer)
    tokenizer.add_tokens(["neologism"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=f"gives ids up to {knows} and the model knows {knows} tok"):
        PREDICTORS["fill-mask"].load(str(folder))
