"""From a config to live objects: what loads, and what is refused before it would train nonsense."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.architectures import architecture

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.models.build import _dropout_names, build_model, build_tokenizer
from trainyard.models.hub import load_config, resolve_model
from trainyard.tasks import get_task
from trainyard.training.worker.optimizer import build_optimizer, build_scheduler

MRPC, MNLI = get_task("mrpc"), get_task("mnli")


def test_weights_under_other_names_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """As `DataParallel` saves them: the whole encoder would start from random weights."""
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model.safetensors")
    named = {f"module.{name}": tensor for name, tensor in weights.items()}
    save_file(named, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"lacks 3\d weights of its encoder.*\(bert\.embeddings.*, it has module\.",
    ):
        build_model(str(other), MRPC, seed=42)


def test_an_encoder_of_another_shape_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    settings = (other / "config.json").read_text()
    (other / "config.json").write_text(settings.replace('"vocab_size": ', '"vocab_size": 1'))
    with pytest.raises(UserError, match=r"lacks 1 weights of .*\(bert\.embeddings\.word_emb"):
        build_model(str(other), MRPC, seed=42)


def test_another_head_and_a_missing_pooler_are_made_anew(tiny_model: Path, tmp_path: Path) -> None:
    fine_tuned = tmp_path / "fine-tuned"
    build_model(str(tiny_model), MRPC, seed=42).save_pretrained(fine_tuned)
    model = build_model(str(fine_tuned), MNLI, seed=42)
    assert model.classifier.weight.shape[0] == 3

    weights = load_file(tiny_model / "model.safetensors")
    bare = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert bare.keys() < weights.keys()
    save_file(bare, fine_tuned / "model.safetensors", {"format": "pt"})
    assert build_model(str(fine_tuned), MRPC, seed=42).classifier.weight.shape[0] == 2


def test_a_model_that_brings_code_is_refused_and_its_code_not_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where somebody sits at the terminal and would say yes to transformers' question."""
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    folder, ran = tmp_path / "own-code", tmp_path / "ran"
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import BertConfig\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
    )
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(settings))
    config = TrainConfig(model_name_or_path=str(folder), max_length=32)
    with pytest.raises(UserError, match="needs its repository's code, which is never run here"):
        build_tokenizer(config)
    with pytest.raises(UserError, match="needs its repository's code, which is never run here"):
        load_config(str(folder))
    assert not ran.exists()


def test_positions_that_no_token_gets_are_not_promised(tiny_model: Path, tmp_path: Path) -> None:
    """RoBERTa's positions start after the padding token's id: of 514 it uses 512."""
    folder = tmp_path / "roberta"
    shutil.copytree(tiny_model, folder)
    transformers.RobertaConfig(
        vocab_size=101, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=34, pad_token_id=1,
    ).save_pretrained(folder)  # fmt: skip
    config = TrainConfig(model_name_or_path=str(folder), max_length=32)
    assert build_tokenizer(config)
    for length in (33, 34, 500):
        with pytest.raises(UserError, match=rf"--max-length {length} is more than the 32 pos.*32$"):
            build_tokenizer(dataclasses.replace(config, max_length=length))
    config = TrainConfig(model_name_or_path=str(tiny_model), max_length=64)
    assert build_tokenizer(config)  # BERT uses all of its own


@pytest.mark.parametrize("name", ["package:absent.sub/x", "package:/x", "package:.x/y"])
def test_a_package_that_cannot_be_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match="is not installed here; install it"):
        resolve_model(name)


def test_random_weights_come_from_the_seed_and_need_no_checkpoint(
    tiny_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    states = [
        build_model(str(bare), MNLI, seed=seed, init="random").state_dict() for seed in (1, 1, 2)
    ]
    pretrained = build_model(str(tiny_model), MNLI, seed=1).state_dict()
    name = "bert.embeddings.word_embeddings.weight"
    first, same, other, learned = (state[name] for state in (*states, pretrained))
    assert first.dtype == torch.float32
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first, learned)
    assert first.shape == learned.shape
    assert states[0]["classifier.weight"].shape[0] == 3


def test_biases_and_norms_do_not_decay(tiny_model: Path) -> None:
    config = TrainConfig(model_name_or_path=str(tiny_model), weight_decay=0.1, learning_rate=1e-3)
    model = build_model(str(tiny_model), MRPC, seed=42)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(config, model)
    decaying, others = ({name_of[p] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
    assert others == {n for n in name_of.values() if n.endswith(".bias") or ".LayerNorm." in n}
    assert decaying == set(name_of.values()) - others
    assert {"classifier.weight", "bert.embeddings.word_embeddings.weight"} <= decaying


COSINE = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]
SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "linear": ({}, [1 - step / 10 for step in range(11)]),
    "linear, 2 steps of warm-up": ({"warmup_steps": 2}, [0, 0.5, *(1 - k / 8 for k in range(9))]),
    "linear, a fifth": ({"warmup_steps": 0.2}, [0, 0.5, *(1 - k / 8 for k in range(9))]),
    "cosine, a fifth": ({"warmup_steps": 0.2, "lr_scheduler_type": "cosine"}, [0, 0.5, *COSINE]),
    "constant": ({"lr_scheduler_type": "constant"}, [1.0] * 11),
}
"""Shares of the peak rate before each of 10 steps, and after the last."""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_of_each_step(schedule: str) -> None:
    fields, shares = SCHEDULES[schedule]
    config = TrainConfig(learning_rate=1e-3, **fields)

    def rates(build: Callable[[Any], Any]) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        scheduler = build(optimizer)
        found: list[float] = []
        for _ in shares:
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    ours = rates(lambda optimizer: build_scheduler(config, optimizer, 10))
    assert ours == pytest.approx([1e-3 * share for share in shares], abs=1e-12)
    warmup = 2 if config.warmup_steps else 0
    assert ours == rates(
        lambda optimizer: transformers.get_scheduler(
            config.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=10
        )
    )


@pytest.mark.parametrize(
    "kind", ["bert", "distilbert", "modernbert", "deberta", "gpt2", "t5", "bart", "xlnet"]
)
def test_dropout_of_every_family_is_set(kind: str, tmp_path: Path) -> None:
    folder = architecture(tmp_path, kind)

    def rates(dropout: float | None) -> set[float]:
        model = build_model(str(folder), MRPC, seed=1, dropout=dropout)
        return {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}

    assert rates(0.0) == {0.0}
    assert rates(0.4) == {0.4}
    assert rates(None) <= {0.0, 0.1, 0.2}


def test_a_model_without_dropout_is_refused() -> None:
    config = SimpleNamespace(to_dict=lambda: {"hidden_size": 8, "encoder_layerdrop": 0.1})
    with pytest.raises(UserError, match="has no dropout in its config; leave out --dropout"):
        _dropout_names("acme/model", config)


def test_a_mistyped_or_unfinished_run_is_not_asked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mail").mkdir(parents=True)
    (tmp_path / "runs/mail/run.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"runs/maill: there is no such folder; did you mean runs/mail\?"
    ):
        resolve_model("runs/maill")
    with pytest.raises(UserError, match="the run has exported no model; finish it by the command"):
        resolve_model("runs/mail")
    (tmp_path / "org").mkdir()  # holds no run: the name is the Hub's
    assert resolve_model("org/model") == "org/model"
