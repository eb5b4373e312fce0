"""From a config to live objects: what loads, and what is refused before it would train nonsense."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.modeling import build_model
from trainyard.tasks import get_task

MRPC, MNLI = get_task("mrpc"), get_task("mnli")


def config_of(model: Path) -> TrainConfig:
    return TrainConfig(model_name_or_path=str(model))


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
        build_model(config_of(other), MRPC)


def test_an_encoder_of_another_shape_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    settings = (other / "config.json").read_text()
    (other / "config.json").write_text(settings.replace('"vocab_size": ', '"vocab_size": 1'))
    with pytest.raises(UserError, match=r"lacks 1 weights of .*\(bert\.embeddings\.word_emb"):
        build_model(config_of(other), MRPC)


def test_another_head_and_a_missing_pooler_are_made_anew(tiny_model: Path, tmp_path: Path) -> None:
    fine_tuned = tmp_path / "fine-tuned"
    build_model(config_of(tiny_model), MRPC).save_pretrained(fine_tuned)
    model = build_model(config_of(fine_tuned), MNLI)
    assert model.classifier.weight.shape[0] == 3

    weights = load_file(tiny_model / "model.safetensors")
    bare = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert bare.keys() < weights.keys()
    save_file(bare, fine_tuned / "model.safetensors", {"format": "pt"})
    assert build_model(config_of(fine_tuned), MRPC).classifier.weight.shape[0] == 2
