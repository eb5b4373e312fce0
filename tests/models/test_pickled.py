"""Models that have only `.bin` weights: converted once, with nothing of the file run."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from models.test_hub import run
from support.hub_stand_in import COMMIT, hub
from support.small_models import bert, classifier, encoder_decoder

from trainyard.errors import UserError
from trainyard.evaluation import EngineConfig, choose_engine
from trainyard.inference import PREDICTORS
from trainyard.models import ENGINES, base_digests, build_model, resolve_model, with_safetensors
from trainyard.models.engines.choice import choose, read
from trainyard.tasks import get_task

TEXT = "bana cola fele"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    return home / "trainyard" / "safetensors"


def pickled(source: Path, target: Path, shards: int = 1) -> Path:
    """A copy of a model whose weights are `.bin`, as torch writes them."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = list(load_file(source / "model.safetensors").items())
    if shards == 1:
        torch.save(dict(weights), target / "pytorch_model.bin")
        return target
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = dict(weights[shard::shards])
        torch.save(part, target / file)
        weight_map |= dict.fromkeys(part, file)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return target


@pytest.mark.parametrize("shards", [1, 3])
def test_a_bin_model_answers_like_its_safetensors(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], shards: int
) -> None:
    safe = classifier(tmp_path / "safe")
    model = pickled(safe, tmp_path / "pickled", shards)
    before = {path: path.read_bytes() for path in model.iterdir()}
    load = PREDICTORS["text-classification"].load
    assert load(str(model))(TEXT) == load(str(safe))(TEXT)
    said = f"{model} has only pickled weights: converting them to safetensors once, in {cache}"
    assert capsys.readouterr().err.count(said) == 1
    (converted,) = cache.iterdir()
    assert len(list(converted.glob("*.safetensors"))) == shards
    assert load(str(model))(TEXT) == load(str(safe))(TEXT)
    assert "converting" not in capsys.readouterr().err
    assert list(cache.iterdir()) == [converted]
    assert {path: path.read_bytes() for path in model.iterdir()} == before
    build_model(str(model), get_task("mrpc"), seed=0)
    # Other labels are another model, although its weights are the same.
    digest = base_digests(str(model))
    config = json.loads((model / "config.json").read_text())
    config["id2label"]["0"] = "renamed"
    (model / "config.json").write_text(json.dumps(config))
    assert "renamed" in str(load(str(model))(TEXT))
    assert base_digests(str(model)) != digest


def test_tied_weights_are_converted(tmp_path: Path) -> None:
    """In memory they are one tensor under several names, which safetensors cannot store."""
    import torch
    import transformers

    safe = encoder_decoder(tmp_path / "safe", "Bart")
    model = pickled(safe, tmp_path / "pickled")
    state = transformers.AutoModelForSeq2SeqLM.from_pretrained(safe).state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) < len(state)
    torch.save(state, model / "pytorch_model.bin")
    load = PREDICTORS["summarization"].load
    assert load(str(model))(TEXT) == load(str(safe))(TEXT)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["TRAINYARD_EVIL"],)


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("TRAINYARD_EVIL", str(tmp_path / "evil"))
    model = pickled(classifier(tmp_path / "safe"), tmp_path / "pickled")
    load = PREDICTORS["text-classification"].load
    for content, sentence in (
        (pickle.dumps(Evil()), "pytorch_model.bin is damaged or holds more than tensors"),
        (b"not a pickle", "pytorch_model.bin is damaged or holds more than tensors"),
    ):
        (model / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            load(str(model))
    # In the format before zip, torch meets a cut in many places, each with its own exception.
    old = {"weight": torch.ones(3)}
    torch.save(old, model / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    content = (model / "pytorch_model.bin").read_bytes()
    for length in range(1, len(content), 7):
        (model / "pytorch_model.bin").write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged or holds more than tensors"):
            with_safetensors(str(model))
    torch.save({"weight": torch.ones(1), "epoch": 3}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds 'epoch', which is not a tensor"):
        load(str(model))
    (model / "pytorch_model.bin").unlink()
    index = {"weight_map": {"weight": "../safe/model.safetensors"}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"names the weights '../safe/model.safetensors', which are"
    ):
        load(str(model))
    assert not (tmp_path / "evil").exists()
    assert not list(cache.iterdir())


HUB = """
import sys
from trainyard.inference import PREDICTORS
from trainyard.models import build_model, model_revision
from trainyard.models.engines.choice import choose, read
from trainyard.tasks import get_task

name = "acme/old"
build_model(name, get_task("mrpc"), model_revision(name), seed=0)
predictor = PREDICTORS["text-classification"].load(name, revision=model_revision(name))
print(model_revision(name), predictor("bana")[0][0]["label"])
"""


def test_a_bin_model_of_the_hub_is_converted_at_its_commit(tmp_path: Path) -> None:
    """With a commit, transformers does not ask for the Hub's own conversion."""
    pickled(classifier(tmp_path / "safe"), tmp_path / "hub/models/acme/old")
    with hub(tmp_path / "hub") as (endpoint, requests):
        commit, label = run(HUB, [], endpoint, tmp_path).split()
    assert commit == COMMIT
    fetched = [request for request in requests if request.endswith("pytorch_model.bin")]
    assert f"GET acme/old/resolve/{COMMIT}/pytorch_model.bin" in fetched
    # The Hub is gone: the caches answer.
    assert run(HUB, [], endpoint, tmp_path, HF_HUB_OFFLINE="1").split() == [commit, label]


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    model = bert(tmp_path / "run/model", "Model")
    assert resolve_model(str(tmp_path / "run")) == str(model)
    assert with_safetensors(str(tmp_path / "run")) == (str(model), None)
    with pytest.raises(
        UserError, match="give the folder of a run or of a saved model, or a Hub id"
    ):
        resolve_model(str(tmp_path))
    assert resolve_model("long" * 100) == "long" * 100, "an id that the Hub refuses"


def test_the_engine_measured_for_a_bin_model_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pickled(classifier(tmp_path / "safe"), tmp_path / "pickled")
    labels = PREDICTORS["text-classification"].load(str(model)).labels
    file = tmp_path / "rows.jsonl"
    rows = [{"text": TEXT, "label": labels[row % len(labels)]} for row in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)))
    for slow in ("compile", "openvino"):
        monkeypatch.delitem(ENGINES, slow)
    choose_engine(EngineConfig(model_name_or_path=str(model), validation_file=str(file)))
    folder = Path(with_safetensors(str(model))[0])
    assert choose("auto", "float32", folder, "cpu").why is None
    assert read(folder) is not None
