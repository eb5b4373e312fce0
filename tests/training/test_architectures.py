"""Training over architectures: unused parameters, missing padding tokens, special tokens in texts."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.architectures import architecture, config_for
from support.runs_locally import run_locally, weights_hash

from trainyard.data import find_splits, prepare
from trainyard.errors import UserError
from trainyard.inference.registry import PREDICTORS
from trainyard.models.build import build_model, build_tokenizer
from trainyard.storage import RunFolder
from trainyard.training.driver.environment import environment
from trainyard.training.driver.export import export_model
from trainyard.training.driver.fit import _open_record
from trainyard.training.worker.probe import probe


@pytest.mark.parametrize(
    "kind", ["xlnet", "big_bird", "canine", "roformer", "gpt2-no-pad-in-config"]
)
def test_what_ended_in_a_bare_error_trains(kind: str, tmp_path: Path) -> None:
    outcome, folder = run_locally(config_for(tmp_path, kind))
    assert (outcome.status, outcome.state.step) == ("finished", 2)
    assert (outcome.padding_note is not None) == (kind in ("xlnet", "canine"))
    assert weights_hash(folder, 2)


@pytest.mark.parametrize("kind", ["xlnet", "big_bird", "canine", "roformer"])
def test_every_parameter_that_trains_gets_a_gradient(kind: str, tmp_path: Path) -> None:
    """DDP waits for a gradient of each; one worker alone would not notice."""
    config = config_for(tmp_path, kind)
    splits = find_splits(config)
    data = prepare(splits, build_tokenizer(config), config, tmp_path / "cache")
    model = build_model(data.model, splits.task, seed=1)
    padding = probe(model, config, data)
    table = data.table("train")
    batch = table.gather(np.arange(1), int(table.lengths[0]), padding)
    model.train()
    model(**{name: torch.from_numpy(array) for name, array in batch.items()}).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert 0 < len(trained) < len(list(model.parameters()))
    assert all(parameter.grad is not None for parameter in trained)


def test_a_vocabulary_larger_than_the_embedding(tmp_path: Path) -> None:
    config = config_for(tmp_path, "gpt2-pad-not-resized")
    with pytest.raises(UserError, match="train with --resize-embeddings, or give the tokenizer"):
        build_tokenizer(config)
    outcome, _ = run_locally(config_for(tmp_path, "gpt2-pad-not-resized", resize_embeddings=True))
    assert outcome.status == "finished"


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_special_tokens_in_texts_are_text(kind: str, tmp_path: Path) -> None:
    texts = [("good </s> train" if i % 3 else "late") + " signal" * (i % 5) for i in range(24)]
    config = config_for(tmp_path, kind, texts)
    tokenizer = build_tokenizer(config)
    assert tokenizer(texts[1])["input_ids"].count(tokenizer.eos_token_id) == 1
    tokenizer.save_pretrained(tmp_path / "saved")
    assert '"split_special_tokens": true' in (tmp_path / "saved/tokenizer_config.json").read_text()
    outcome, _ = run_locally(config)
    assert outcome.status == "finished"


def test_a_model_is_exported_only_if_it_answers(tmp_path: Path) -> None:
    config = config_for(tmp_path, "bart", labels=("LABEL_0", "LABEL_1"))
    outcome, folder = run_locally(config)
    assert outcome.state.best_step == 2
    checkpoint = folder.checkpoints / "step-00000002"
    assert "id2label" not in json.loads((checkpoint / "config.json").read_text())
    tokenizer = build_tokenizer(config)
    export_model(folder, checkpoint, tokenizer, "card", {}, 32, ("LABEL_0", "LABEL_1"))
    predictor = PREDICTORS["text-classification"].load(str(folder.model))
    assert predictor.labels == ["LABEL_0", "LABEL_1"]
    assert predictor.max_tokens == 32
    base = json.loads((checkpoint / "config.json").read_text())
    assert "trained_max_length" not in base
    # A base model that was exported with another length.
    (checkpoint / "config.json").write_text(json.dumps({**base, "trained_max_length": 8}))
    export_model(folder, checkpoint, tokenizer, "card", {}, 24, ("LABEL_0", "LABEL_1"))
    assert json.loads((folder.model / "config.json").read_text())["trained_max_length"] == 24
    assert PREDICTORS["text-classification"].load(str(folder.model)).max_tokens == 24
    (checkpoint / "config.json").write_text(json.dumps(base))

    weights = load_file(checkpoint / "model.safetensors")
    weights["classification_head.out_proj.bias"].fill_(float("nan"))
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    before = (folder.model / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="hold NaN or infinite values"):
        export_model(folder, checkpoint, tokenizer, "card", {}, 32, ("LABEL_0", "LABEL_1"))
    assert (folder.model / "model.safetensors").read_bytes() == before
    assert not list(folder.path.glob(".model-*"))


def test_two_ids_with_one_label_are_refused(tmp_path: Path) -> None:
    folder = architecture(tmp_path, "bert")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "yes", "1": "yes"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="calls both 0 and 1 'yes'; give each id its own label"):
        PREDICTORS["text-classification"].load(str(folder))


@pytest.mark.parametrize("kind", ["bert", "bart", "xlnet", "big_bird"])
def test_an_unfinished_run_that_would_be_computed_otherwise_is_refused(
    kind: str, tmp_path: Path
) -> None:
    """Records of the first version hold no numerics version; other models resume as before."""
    config = config_for(tmp_path, kind).as_begun({})
    folder = RunFolder(tmp_path / "runs" / kind)
    folder.create()
    data = prepare(find_splits(config), build_tokenizer(config), config, tmp_path / ".cache")
    folder.update(name=kind, config=asdict(config), status="stopped", data_fingerprint="another")
    sentence = (
        "the data of run 'bert' has changed"
        if kind == "bert"
        else f"run '{kind}' was started with another version of Trainyard, which computed {kind} models "
        "differently (numerics 1, now 2); choose another --run-name, or --fresh"
    )
    with pytest.raises(UserError, match=re.escape(sentence)):
        _open_record(folder, config, data, None, environment(config))
    folder.update(data_fingerprint=data.fingerprint)
    if kind == "bert":
        _open_record(folder, config, data, None, environment(config))
        assert folder.read()["numerics_version"] == 1
    folder.clear()
    for _ in range(2):
        _open_record(folder, config, data, None, environment(config))
        assert folder.read()["numerics_version"] == 2
