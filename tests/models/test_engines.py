"""Engines: the model's own answers, whatever the batch; what is measured is stored, and gone by."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_models import every_task
from support.tiny import WORDS, write_tiny_model

from trainyard.errors import UserError
from trainyard.evaluation.config import EngineConfig
from trainyard.evaluation.engine_choice import best_of, choose_engine
from trainyard.inference.registry import PREDICTORS
from trainyard.models.engines import openvino
from trainyard.models.engines.choice import Choice, choose, machine, weights_of
from trainyard.models.engines.registry import ENGINES, check_engine
from trainyard.serving.options import ModelOptions, Version
from trainyard.serving.replica.host import Host
from trainyard.serving.replica.metrics import ReplicaMetrics

GENERATING = ("summarization", "translation", "text2text-generation", "text-generation")
ONE_PASS = [task for task in PREDICTORS if task not in GENERATING]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return every_task(tmp_path_factory.mktemp("models"))


def flat(result: Any) -> Any:
    """The numbers of a row's result, whatever holds them."""
    if isinstance(result, tuple | list):
        return np.concatenate([flat(part) for part in result])
    return np.asarray(result, np.float64).ravel()


@pytest.mark.parametrize("task", ONE_PASS)
def test_openvino_answers_as_torch_does_and_a_row_knows_no_neighbors(
    models: dict[str, Path], task: str
) -> None:
    by_torch = PREDICTORS[task].load(str(models[task]))
    other = PREDICTORS[task].load(str(models[task]), engine="openvino")
    assert other.model.device.type == "meta"  # torch's weights are let go
    body = by_torch.example
    rows = [
        row
        for times in (1, 2, 3)
        for row in by_torch.preprocess(
            [_longer(body["inputs"], times)], body.get("parameters")
        ).rows
    ]
    together = other.forward(rows)
    for row, expected, found in zip(rows, by_torch.forward(rows), together, strict=True):
        # 2.1e-5 on a processor without AVX-512, where both add in another order.
        np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-5, atol=5e-5)
        np.testing.assert_allclose(flat(other.forward([row])[0]), flat(found), atol=1e-5)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))  # as in a pass beside another
    for expected, found in zip(together, other.forward(rows), strict=True):
        np.testing.assert_allclose(flat(found), flat(expected), atol=1e-5)
    torch.set_num_threads(threads)
    answers = [p(body["inputs"], **body.get("parameters", {})) for p in (by_torch, other)]
    assert _alike(*answers)


def _longer(inputs: Any, times: int) -> Any:
    """The task's example, with its texts so many times as long, its lists as they are."""
    if isinstance(inputs, dict):
        last = list(inputs)[-1]
        return {**inputs, last: _longer(inputs[last], times)}
    return " ".join([inputs] * times) if isinstance(inputs, str) else inputs


def _alike(a: Any, b: Any) -> bool:
    """The same answers, but for the last digits of their numbers."""
    if isinstance(a, float):
        return bool(a == pytest.approx(b, rel=1e-4, abs=1e-4))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    return bool(a == b)


@pytest.mark.long
def test_compiled_torch_answers_as_torch_does(models: dict[str, Path]) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    task = "text-classification"
    by_torch, other = (
        PREDICTORS[task].load(str(models[task]), engine=name) for name in ("torch", "compile")
    )
    rows = by_torch.preprocess(["ba", "ba co du fe"], {}).rows
    np.testing.assert_allclose(other.forward(rows), by_torch.forward(rows), atol=1e-5)


@pytest.mark.long
def test_a_missing_compiler_is_one_sentence(models: dict[str, Path], tmp_path: Path) -> None:
    """In a process that has compiled nothing: torch remembers the compiler."""
    code = (
        "import sys, torch._inductor.config; from trainyard.inference import PREDICTORS\n"
        "torch._inductor.config.cpp.cxx = ('no-such-compiler',)\n"
        "PREDICTORS['text-classification'].load(sys.argv[1], engine='compile')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(models["text-classification"])],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stderr.splitlines()[-1]
    assert re.search(
        r"UserError: torch.compile cannot run .* compiler found.*install g\+\+", said
    ), said


def test_what_an_engine_cannot_run_is_one_sentence(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="one forward pass, and this one generates; use torch"):
        PREDICTORS["text-generation"].load(str(models["text-generation"]), engine="openvino")
    with pytest.raises(UserError, match="openvino computes in float32, bfloat16, int8, not in flo"):
        check_engine("openvino", "float16", "cpu")
    with pytest.raises(UserError, match="openvino runs on cpu, not on cuda; use torch or comp"):
        check_engine("openvino", "float32", "cuda")
    classify = PREDICTORS["text-classification"]
    with pytest.raises(UserError, match=r"int8 needs weights that `trainyard engine` has stored"):
        classify.load(str(models["text-classification"]), engine="openvino", dtype="int8")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"install it with `pip install openvino nncf`"):
        classify.load(str(models["text-classification"]), engine="openvino")


def test_an_engine_that_answers_something_else_is_refused(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = openvino.convert

    def spoilt(model: Any, batch: Any) -> Any:
        torch.nn.init.normal_(model.classifier.weight)
        return convert(model, batch)

    def build(model: Any, *rest: Any) -> Any:
        kept = model.classifier.weight.clone()
        found = openvino.build(model, *rest)
        model.classifier.weight.copy_(kept)
        return found

    monkeypatch.setattr(openvino, "convert", spoilt)
    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], build=build))
    with pytest.raises(
        UserError, match=r"openvino in float32 gives other outputs than the model .*its logits"
    ):
        PREDICTORS["text-classification"].load(
            str(models["text-classification"]), engine="openvino"
        )


def test_the_fastest_is_chosen_of_those_that_are_good_enough() -> None:
    same = {"engine": "openvino", "dtype": "float32", "speed": 1.5, "largest_difference": 1e-6,
            "loss": 0.0}  # fmt: skip
    int8 = {"engine": "openvino", "dtype": "int8", "speed": 4.0, "largest_difference": 0.4,
            "loss": 0.004}  # fmt: skip
    broken = {"engine": "openvino", "dtype": "bfloat16", "refused": "no such arithmetic"}
    assert best_of([same, int8, broken], 0.0) is same
    assert best_of([same, int8, broken], 0.005) is int8
    assert best_of([same, int8, broken], 0.003) is same
    assert best_of([{**same, "speed": 1.04}, broken], 0.0)["engine"] == "torch"
    # Without a loss that is allowed, a score that happens to be as good is not enough.
    assert best_of([{**int8, "loss": -0.01}], 0.0)["engine"] == "torch"


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Any:
    """A classifier with a file of rows, and what `trainyard engine` says of it, int8 allowed."""
    folder = tmp_path_factory.mktemp("chosen")
    model = folder / "model"
    shutil.copytree(models["text-classification"], model)
    labels = PREDICTORS["text-classification"].load(str(model)).labels
    rows = [{"text": " ".join(WORDS[i : i + 1 + i % 7]), "label": labels[i % len(labels)]}
            for i in range(60)]  # fmt: skip
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    config = EngineConfig(
        model_name_or_path=str(model), validation_file=str(file), num_rows=40, max_loss=0.99
    )
    with pytest.MonkeyPatch.context() as patch:  # compiling takes most of a minute
        patch.delitem(ENGINES, "compile")
        return model, choose_engine(config)


def test_what_is_measured_is_stored_and_served(chosen: Any) -> None:
    model, found = chosen
    assert json.loads(json.dumps(found)) == found
    stored = json.loads((model / "engine.json").read_text())
    kinds = [(one["engine"], one["dtype"]) for one in stored["candidates"]]
    assert ("openvino", "float32") in kinds
    assert ("openvino", "int8") in kinds
    for one in stored["candidates"]:
        assert one.get("refused") or {"speed", "score", "loss", "one_ms"} <= set(one)
    exact = stored["candidates"][kinds.index(("openvino", "float32"))]
    assert exact["largest_difference"] < 1e-4
    assert (exact["changed_answers"], exact["loss"]) == (0, 0.0)
    assert stored["rows"] == 40
    assert stored["machine"] == machine()
    assert (model / "engine/int8.xml").exists() == (stored["dtype"] == "int8")
    assert not list(model.glob(".engine"))
    host = Host.load(Version(source=str(model)), ModelOptions(), ReplicaMetrics())
    try:
        assert host.describe()["engine"] == stored["engine"]
        assert host.describe()["dtype"] == stored["dtype"]
    finally:
        host.close()


def test_a_stored_choice_is_gone_by_only_where_it_was_measured(
    chosen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(chosen[0], model)
    record = json.loads((model / "engine.json").read_text())
    weights = weights_of(model)

    def store(**changed: Any) -> None:
        (model / "engine.json").write_text(json.dumps({**record, "weights": weights, **changed}))

    def auto(dtype: str = "float32", device: str = "cpu") -> Choice:
        return choose("auto", dtype, model, device)

    store(engine="openvino", dtype="float32", file=None)
    assert auto() == Choice("openvino", "float32")
    assert choose("torch", "float32", model, "cpu") == Choice()
    assert auto("bfloat16") == Choice("torch", "bfloat16")  # asked for by name
    assert auto(device="cuda") == Choice()
    store(engine="openvino", dtype="int8", file="0")
    assert auto() == Choice(why="engine.json was measured with another engine/int8.xml")
    store(engine="openvino", dtype="float32", file=None, weights="0")
    assert auto() == Choice(why="engine.json was measured with other weights")
    assert "so torch runs it" in auto().about()["engine_note"]
    store(engine="openvino", dtype="float32", file=None)
    monkeypatch.setattr("trainyard.models.engines.choice.machine", lambda: "another")
    assert auto() == Choice(why="engine.json was measured on another processor")
    store(engine="tensorrt")
    with pytest.raises(
        UserError, match=r"engine.json cannot be read .*; measure again by `trainyard eng"
    ):
        auto()
    (model / "engine.json").unlink()
    assert auto() == Choice()


def test_mistakes(tmp_path: Path) -> None:
    def refused(sentence: str, **fields: Any) -> None:
        with pytest.raises(UserError, match=sentence):
            choose_engine(EngineConfig(**{"model_name_or_path": str(tmp_path), **fields}))

    refused("num_rows is 0; it must be at least 1", num_rows=0)
    refused("max_loss is 1.5; it must be from 0 to below 1", max_loss=1.5)
    refused("validation_file is evaluated alone", validation_file="x.csv", task="mrpc")
    encoder = write_tiny_model(tmp_path / "encoder")
    refused("does not say which task it was fine-tuned on", model_name_or_path=str(encoder))
