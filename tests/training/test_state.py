"""A checkpoint gives back what was saved, whatever names a model's weights have on the Hub."""

import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.models.build import build_model
from trainyard.storage import RunFolder
from trainyard.storage.checkpoints import CheckpointStore
from trainyard.tasks import get_task
from trainyard.training.outcome import TrainState
from trainyard.training.worker import state as state_module
from trainyard.training.worker.optimizer import build_optimizer, build_scheduler
from trainyard.training.worker.saving import CheckpointWriter
from trainyard.training.worker.state import (
    load_checkpoint,
    on_every_rank,
    on_rank_0,
    restore_predictions,
)
from trainyard.training.worker.strategies import STRATEGIES, training_accelerator


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


def test_weights_on_cpus_start_at_cache_lines(tiny_model: Path, tmp_path: Path) -> None:
    """Else a pass of one row has bits of its own. Of two files whose headers differ by 8 bytes, one at
    least has its weights elsewhere."""
    for header in ("", "8 bytes."):
        base = tmp_path / f"base{len(header)}"
        shutil.copytree(tiny_model, base)
        weights = load_file(tiny_model / "model.safetensors")
        save_file(weights, base / "model.safetensors", {"format": "pt", "note": header})
        config = TrainConfig(task="mrpc", model_name_or_path=str(base))
        model = build_model(str(base), get_task("mrpc"), seed=1)
        accelerator = training_accelerator(config)
        model, optimizer = STRATEGIES["ddp"].prepare(config, accelerator, model)
        addresses = {weight.data_ptr() % 64 for weight in model.parameters()}
        assert addresses == {0}
        held = {weight for group in optimizer.param_groups for weight in group["params"]}
        assert held == set(model.parameters())


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


def slow(work: Any) -> Any:
    def wait_first(*arguments: Any) -> Any:
        time.sleep(0.3)
        return work(*arguments)

    return wait_first


def test_processes_that_wait_for_the_slowest_hear_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that downloads for longer than the process group waits does not end the attempt."""
    busy: list[list[bool]] = []
    another = iter([True, True, True, False])

    def gather(mine: list[Any]) -> list[Any]:
        states = [*mine, (next(another, False), None)]
        busy.append([is_busy for is_busy, _ in states])
        return states

    monkeypatch.setattr(state_module, "gather_object", gather)
    monkeypatch.setattr(state_module, "WAIT_SECONDS", 0.05)
    assert on_every_rank(lambda: "here") == "here"
    assert busy == [[False, True]] * 3 + [[False, False]]
    busy.clear()
    assert on_every_rank(slow(lambda: "at last")) == "at last"
    assert len(busy) > 3
    assert busy[:-1] == [[True, False]] * (len(busy) - 1)
    with pytest.raises(UserError, match="lost"):
        on_every_rank(fail)


def fail() -> None:
    raise UserError("lost")


def fail_oddly() -> None:
    class LocalError(Exception):
        """Pickle cannot find its class."""

    raise LocalError("odd")


@pytest.mark.parametrize(
    ("work", "received"),
    [(fail, UserError("lost")), (fail_oddly, RuntimeError("LocalError: odd"))],
)
def test_the_error_of_one_process_reaches_the_others(
    work: Callable[[], None], received: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others do not wait for the timeout of the process group."""
    sent: list[Any] = []

    def send(_: Any, value: Any) -> Any:
        sent.append(pickle.loads(pickle.dumps(value)))
        return value

    def gather(mine: list[Any]) -> list[Any]:
        states = [*mine, (True, None)]  # the other still works
        sent.append(pickle.loads(pickle.dumps(states)))
        assert len(sent) < 9, "the error does not end the wait"
        return states

    monkeypatch.setattr(state_module, "broadcast", send)
    monkeypatch.setattr(state_module, "gather_object", gather)
    with pytest.raises(Exception, match=r"^(lost|odd)$"):
        on_rank_0(SimpleNamespace(is_main_process=True), work)
    with pytest.raises(Exception, match=r"^(lost|odd)$"):
        on_every_rank(work)

    monkeypatch.setattr(state_module, "broadcast", lambda *_: sent.pop(0))
    monkeypatch.setattr(state_module, "gather_object", lambda _: list(reversed(sent.pop(0))))
    for wait in (
        lambda: on_rank_0(SimpleNamespace(is_main_process=False), work),
        lambda: on_every_rank(lambda: "done"),
    ):
        with pytest.raises(type(received), match=f"^{received}$"):
            wait()


def test_a_resume_tells_the_others_what_one_process_still_downloads(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint on every node, and on rank 0 the best one, whose predictions it restores."""
    config = TrainConfig(task="mrpc", model_name_or_path=str(tiny_model))
    accelerator = training_accelerator(config)
    run = RunFolder(tmp_path)
    store = run.store()
    store.claim()
    save(config, accelerator, store, live(config, accelerator))

    gathered: list[bool] = []
    sent: list[Any] = []

    def gather(mine: list[Any]) -> list[Any]:
        gathered.extend(is_busy for is_busy, _ in mine)
        return mine

    def broadcast(_: Any, value: Any) -> Any:
        sent.append(value)
        return value

    monkeypatch.setattr(state_module, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(state_module, "gather_object", gather)
    monkeypatch.setattr(state_module, "broadcast", broadcast)
    monkeypatch.setattr(CheckpointStore, "bring", slow(CheckpointStore.bring))
    monkeypatch.setattr(CheckpointStore, "bring_best", slow(CheckpointStore.bring_best))
    assert load_checkpoint(config, accelerator, store, *live(config, accelerator)).step == 1
    assert gathered.count(True) > 3
    sent.clear()
    assert restore_predictions(accelerator, store, run, 1) is None
    assert sent[-2:] == [False, (None, None)]
    assert sent.count(True) > 3


def test_every_process_takes_part_when_predictions_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not write them, and one of a run without an evaluation."""
    sent: list[Any] = []

    def broadcast(_: Any, value: Any) -> Any:
        sent.append(value)
        return value

    monkeypatch.setattr(state_module, "broadcast", broadcast)
    run = RunFolder(tmp_path)
    for main, best in ((False, 1), (False, None), (True, None)):
        assert (
            restore_predictions(SimpleNamespace(is_main_process=main), run.store(), run, best)
            is None
        )
        assert sent == [False, (None, None)]
        sent.clear()
