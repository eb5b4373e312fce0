"""A checkpoint gives back what was saved, whatever names a model's weights have on the Hub."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.models.build import build_model
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.tasks import get_task
from trainyard.training.outcome import TrainState
from trainyard.training.worker.optimizer import build_optimizer, build_scheduler
from trainyard.training.worker.saving import CheckpointWriter
from trainyard.training.worker.state import load_checkpoint
from trainyard.training.worker.strategies import training_accelerator


def old_bert(folder: Path, tiny_model: Path) -> Path:
    """As bert-base-uncased is on the Hub: its norms have a gamma and a beta."""
    folder.mkdir()
    weights = load_file(tiny_model / "model.safetensors")
    named = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in weights.items()
    }
    assert named.keys() != weights.keys()
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((tiny_model / "config.json").read_text())
    return folder


def bart(folder: Path) -> Path:
    """Encoder, decoder and the model itself share one embedding, which is stored once."""
    torch.manual_seed(0)
    transformers.BartModel(
        transformers.BartConfig(
            vocab_size=101, d_model=32, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
            decoder_ffn_dim=64, max_position_embeddings=64,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def live(config: TrainConfig, accelerator: Any) -> tuple[Any, Any, Any]:
    """Model, optimizer and schedule as the loop makes them."""
    model = build_model(config.model_name_or_path, get_task("mrpc"), seed=config.seed)
    model, optimizer = accelerator.prepare(model, build_optimizer(config, model))
    return model, optimizer, build_scheduler(config, optimizer, 10)


def save(
    config: TrainConfig, accelerator: Any, store: CheckpointStore, live: tuple[Any, Any, Any]
) -> None:
    """Commit the checkpoint of step 1."""
    writer = CheckpointWriter(config, accelerator, store)
    model, optimizer, scheduler = live
    writer.begin(model, optimizer, scheduler, TrainState(step=1))
    assert writer.join() is None
    writer.close()


@pytest.mark.parametrize("kind", ["old BERT", "BART"])
def test_weights_come_back_under_whatever_name(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    base = old_bert(folder, tiny_model) if kind == "old BERT" else bart(folder)
    config = TrainConfig(task="mrpc", model_name_or_path=str(base))
    accelerator = training_accelerator(config)
    store = CheckpointStore(tmp_path / "checkpoints")
    store.claim()
    trained = live(config, accelerator)
    with torch.no_grad():
        for parameter in trained[0].parameters():
            parameter.add_(torch.randn_like(parameter))
    save(config, accelerator, store, trained)

    resumed = live(config, accelerator)
    assert load_checkpoint(config, accelerator, store, *resumed).step == 1
    plain, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        store.path(1), output_loading_info=True
    )
    assert not report["missing_keys"] | report["unexpected_keys"]
    expected = trained[0].state_dict()
    for model in (resumed[0], plain):
        found = model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_checkpoint_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    configs = [
        TrainConfig(task="mrpc", model_name_or_path=str(path))
        for path in (tiny_model, bart(tmp_path / "bart"))
    ]
    accelerator = training_accelerator(configs[0])
    store = CheckpointStore(tmp_path / "checkpoints")
    store.claim()
    first, other = (live(config, accelerator) for config in configs)
    save(configs[0], accelerator, store, first)
    with pytest.raises(UserError, match=r"does not fit the model: .*bert\.embeddings"):
        load_checkpoint(configs[1], accelerator, store, *other)
