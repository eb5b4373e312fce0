"""What one request may grow into: the worst body of each task is refused before it is built."""

import asyncio
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.serving_locally import load
from support.small_models import bert, classifier, encoder_decoder, gpt2

from trainyard.inference.registry import PREDICTORS
from trainyard.inference.request_tokens import Row
from trainyard.inference.row_limits import Budget, Limits, TooLargeError
from trainyard.inference.tasks.zero_shot_classification import ZeroShotClassification
from trainyard.serving.replica.host import Host

MODELS: dict[str, Any] = {
    "zero-shot-classification": classifier,
    "token-classification": lambda folder: bert(folder, "ForTokenClassification"),
    "question-answering": lambda folder: bert(folder, "ForQuestionAnswering"),
    "fill-mask": lambda folder: bert(folder, "ForMaskedLM"),
    "feature-extraction": lambda folder: bert(folder, "Model"),
    "sentence-similarity": lambda folder: bert(folder, "Model"),
    "text2text-generation": lambda folder: encoder_decoder(folder, "T5"),
    "text-generation": gpt2,
}

ROWS, TOKENS = 500, 20_000
MANY = [f"bab {i}" for i in range(50_000)]
PAGES = "bab fed " * 20_000


class Reader:
    """A tokenizer that counts what it reads, copies of it included."""

    def __init__(self, tokenizer: Any, read: list[int]) -> None:
        self._tokenizer, self._read = tokenizer, read

    def __call__(self, texts: Any, pairs: Any = None, **options: Any) -> Any:
        for given in (texts, pairs):
            self._read.extend([len(given)] if isinstance(given, str) else map(len, given or ()))
        return self._tokenizer(texts, pairs, **options)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __deepcopy__(self, memo: Any) -> "Reader":
        return Reader(copy.deepcopy(self._tokenizer, memo), self._read)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: make(tmp_path_factory.mktemp(task)) for task, make in MODELS.items()}


@pytest.fixture(scope="module")
def hosts(folders: dict[str, Path]) -> Iterator[dict[str, Host]]:
    options: dict[str, Any] = {
        "max_rows": ROWS,
        "waiting_tokens": TOKENS,
        "max_new_tokens": 200,
        "max_items": 16,
    }
    hosts = {task: load(folder, task=task, **options) for task, folder in folders.items()}
    yield hosts
    for host in hosts.values():
        host.close()


@pytest.mark.parametrize(
    ("task", "inputs", "parameters", "status", "sentence"),
    [
        ("zero-shot-classification", PAGES, {"candidate_labels": MANY}, 413, "holds 50000 pairs"),
        ("zero-shot-classification", PAGES, {"candidate_labels": ",".join(MANY)}, 413, "50000 pairs"),
        ("zero-shot-classification", ["bab"] * 16, {"candidate_labels": MANY[:50]}, 413, "800 pairs"),
        ("zero-shot-classification", PAGES, {"candidate_labels": MANY[:400]}, 413, "25600 tokens"),
        (
            "zero-shot-classification", PAGES,
            {"candidate_labels": MANY[:4], "truncation": False}, 413, "160000 tokens",
        ),
        (  # one token that is unknown, and no token at all
            "zero-shot-classification", "x" * 100_000, {"candidate_labels": MANY[:400]}, 413,
            "2500000 tokens",
        ),
        (
            "zero-shot-classification", ["bab" + " " * 100_000] * 2,
            {"candidate_labels": MANY[:200], "truncation": "only_second"}, 413, "1250000 tokens",
        ),
        (
            "zero-shot-classification", "bab",
            {"candidate_labels": ["x" * 900], "hypothesis_template": "{}" * 400}, 422, "has 400 {}",
        ),
        (
            "zero-shot-classification", "bab",
            {"candidate_labels": ["x"], "hypothesis_template": "x" * 10**6 + "{}"}, 422, "template",
        ),
        (
            "zero-shot-classification", "bab", {"candidate_labels": ["x" * 10**6]}, 422,
            "a label has 1000000 characters",
        ),
        (
            "token-classification", PAGES,
            {"stride": 61, "aggregation_strategy": "simple"}, 413, "chunks of texts",
        ),
        (
            "token-classification", ["bab fed " * 1500] * 16,
            {"stride": 20, "aggregation_strategy": "simple"}, 413, "chunks of texts",
        ),
        ("token-classification", "bab", {"ignore_labels": MANY}, 422, "ignore_labels"),
        (
            "question-answering", {"question": "bab", "context": PAGES}, {"doc_stride": 59}, 413,
            "chunks of texts",
        ),
        (
            "question-answering", [{"question": "bab", "context": "bab fed " * 1500}] * 16, {}, 413,
            "tokens",
        ),
        (
            "question-answering", {"question": "bab", "context": "fed"}, {"top_k": 10**9}, 413,
            "1000000000 answers",
        ),
        ("fill-mask", "[MASK] " * 60, {"top_k": 10}, 413, "600 proposals"),
        ("fill-mask", ["[MASK]"] * 6, {"top_k": 10**9}, 413, "proposals"),
        ("fill-mask", "[MASK]", {"targets": ["unseen"] * 50_000}, 413, "50000 targets"),
        (
            "sentence-similarity", {"source_sentence": "bab", "sentences": MANY}, {}, 413,
            "50001 sentences",
        ),
        (
            "sentence-similarity", [{"source_sentence": "a", "sentences": MANY[:40]}] * 16, {}, 413,
            "sentences",
        ),
        (
            "text2text-generation", "bab", {"max_new_tokens": 131_000, "min_length": 131_000}, 422,
            "max_new_tokens is 131000; at most 200 tokens",
        ),
        ("text2text-generation", "bab", {"max_length": 10**9}, 422, "at most 200 tokens"),
        (
            "text2text-generation", "bab", {"generate_parameters": {"max_new_tokens": 201}}, 422,
            "max_new_tokens is 201; at most 200",
        ),
        ("text2text-generation", "bab", {"num_beams": 10_000}, 422, "num_beams is 10000"),
        (
            "text2text-generation", ["bab"] * 16,
            {"max_new_tokens": 100, "num_beams": 64}, 413, "tokens",
        ),
        ("feature-extraction", ["bab " * 80] * 8, {"truncate": True, "pooling": "none"}, 413, "numbers"),
        ("text-generation", "bab", {"max_new_tokens": 10**12}, 422, "more than the 64"),
        (
            "text-generation", ["bab"] * 16,
            {"max_new_tokens": 2, "num_return_sequences": 64, "do_sample": True}, 413,
            "texts to generate",
        ),
    ],
)  # fmt: skip
def test_the_worst_body_is_refused_before_it_is_built(
    hosts: dict[str, Host],
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    inputs: Any,
    parameters: dict[str, Any],
    status: int,
    sentence: str,
) -> None:
    host, built = hosts[task], [0]
    read: list[int] = []

    def row(*values: Any) -> Row:
        built[0] += 1
        return Row(*values)

    monkeypatch.setattr("trainyard.inference.request_tokens.Row", row)
    monkeypatch.setattr("trainyard.inference.generation.Row", row)
    monkeypatch.setattr(host.predictor, "tokenizer", Reader(host.predictor.tokenizer, read))
    monkeypatch.setattr(host.predictor, "_cutter", None)
    monkeypatch.setattr(host.predictor, "forward", None)
    monkeypatch.setattr(host.predictor, "limits", replace(host.predictor.limits, numbers=10_000))
    body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    answer = asyncio.run(host.answer(body, 60))
    assert (answer.status, sentence in answer.body.decode()) == (status, True), answer.body
    assert built[0] <= ROWS
    assert sum(read) <= 3 * len(body)
    assert len(read) <= 2 * ROWS


def test_what_the_model_itself_would_generate_stays_within_the_limit(tmp_path: Path) -> None:
    folder = encoder_decoder(tmp_path, "T5", generation={"max_length": 100_000})
    host = load(folder, max_new_tokens=9)
    prepared = host.predictor.preprocess("bab")
    assert prepared.rows[0].wanted.max_new_tokens == 9
    assert host.describe()["limits"]["max_new_tokens"] == 9
    host.close()


def test_limits_are_the_servers(folders: dict[str, Path]) -> None:
    """Batch inference computes for one caller: it may ask for what it likes."""
    task = "sentence-similarity"
    predictor = PREDICTORS[task].load(str(folders[task]))
    request = {"source_sentence": "bab", "sentences": MANY[: 2 * ROWS]}
    assert len(predictor.preprocess(request).rows) == 2 * ROWS + 1


@pytest.mark.parametrize("truncation", ["only_first", "longest_first", True])
def test_a_long_text_is_cut_as_if_it_had_been_read_whole(
    folders: dict[str, Path], truncation: Any
) -> None:
    predictor = ZeroShotClassification.load(str(folders["zero-shot-classification"]))
    text, labels = "unseen bab, " * 300, ["fed gig", "lom"]
    request = predictor.preprocess(text, {"candidate_labels": labels, "truncation": truncation})
    whole = predictor.tokenize(
        [text] * 2, [f"This example is {label}." for label in labels], truncation=truncation
    )
    assert [row.inputs for row in request.rows] == [row.inputs for row in predictor.rows_of(whole)]
    assert request.truncated == [max(whole.truncated)]


def test_a_budget_counts_what_comes_together() -> None:
    budget = Budget(Limits(rows=10, tokens=100))
    budget.spend(6, "texts", 90)
    with pytest.raises(
        TooLargeError, match="holds 11 texts, at most 10 are allowed in one request; split a list"
    ):
        budget.spend(5, "texts")
    with pytest.raises(TooLargeError, match="holds 101 tokens, at most 100"):
        Budget(Limits(tokens=100)).spend(1, "texts", 101)
    Budget(Limits()).spend(10**9, "texts", 10**12)
