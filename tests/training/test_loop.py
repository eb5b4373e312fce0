"""The invariants on the loop itself: dropout is on, the last step of an epoch is a partial one."""

import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from support.runs_locally import run_locally, weights_hash
from support.tiny import read_lines

from trainyard.config import TrainConfig
from trainyard.training.outcome import Outcome

LAST_STEP = 18  # 90 rows in steps of 16: 6 steps an epoch, the smallest of 10 rows


@pytest.fixture(scope="module")
def base(small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    storage = str(tmp_path_factory.mktemp("runs"))
    return dataclasses.replace(small_run, storage_path=storage, run_name="uninterrupted")


@pytest.fixture(scope="module")
def uninterrupted(base: TrainConfig) -> tuple[Outcome, str, list[dict[str, Any]]]:
    outcome, folder = run_locally(base)
    assert outcome.status == "finished"
    return outcome, weights_hash(folder, LAST_STEP), folder.metrics()


def ledger(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Ledger lines of all attempts by (step, micro-batch); what was done twice was done alike."""
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    for path in folder.glob("ledger/*.jsonl"):
        for line in read_lines(path):
            key = (line["step"], line["slot"])
            assert lines.setdefault(key, line) == line
    return lines


def check_each_row_once_per_epoch(folder: Path, rows: int, epochs: int) -> None:
    found = ledger(folder)
    for epoch in range(epochs):
        seen = [row for line in found.values() if line["epoch"] == epoch for row in line["rows"]]
        assert sorted(seen) == list(range(rows))


def test_a_run_is_what_it_says(base: TrainConfig, uninterrupted: Any) -> None:
    outcome, _, metrics = uninterrupted
    folder = Path(base.storage_path) / "uninterrupted"
    check_each_row_once_per_epoch(folder, 90, 3)
    training = [line for line in metrics if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, LAST_STEP + 1))
    evaluations = [line for line in metrics if "split" in line]
    assert [line["step"] for line in evaluations] == [6, 12, 18]
    assert outcome.state.best_score == max(line["metrics"]["f1"] for line in evaluations)
    expected = np.linspace(1e-3, 0, LAST_STEP + 1)[1:]
    assert [line["learning_rate"] for line in training] == pytest.approx(expected.tolist())
    # A step's loss is the sum of its micro-batches' shares in the ledger, to the bit.
    shares: dict[int, list[torch.Tensor]] = {}
    for (step, _), line in sorted(ledger(folder).items()):
        share = torch.tensor(float.fromhex(line["loss"]), dtype=torch.float32)
        shares.setdefault(step, []).append(share)
    assert [line["loss"] for line in training] == [
        ((a + b) + (c + d)).item() for a, b, c, d in (shares[step] for step in range(LAST_STEP))
    ]


def test_a_run_of_an_earlier_release_keeps_the_masks_of_pytorch(
    base: TrainConfig, uninterrupted: Any
) -> None:
    """Its record has no version of them."""
    begun = base.as_begun({})
    assert (begun.dropout_version, base.as_begun(None).dropout_version) == (1, 2)
    hashes = {
        version: weights_hash(
            run_locally(
                dataclasses.replace(base, dropout_version=version, run_name=f"masks_{version}")
            )[1],
            LAST_STEP,
        )
        for version in (1, 2)
    }
    assert hashes[2] == uninterrupted[1] != hashes[1]


def kill_and_run_again(config: TrainConfig, points: list[str], uninterrupted: Any) -> None:
    """Kill a run at each of `points` in turn, let it end, and compare all that it left."""
    flags = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            flags += [flag] if value else []
        elif isinstance(value, tuple):
            flags += [flag, *map(str, value)]
        elif value is not None:
            flags += [flag, str(value)]
    for point in points:
        killed = subprocess.run(
            [sys.executable, str(Path(__file__).parents[1] / "support/runs_locally.py"), *flags],
            env={**os.environ, "KILL_AT": point, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert killed.returncode == -9, killed.stderr
    outcome, folder = run_locally(config)
    expected, expected_hash, expected_metrics = uninterrupted
    assert weights_hash(folder, LAST_STEP) == expected_hash
    assert folder.metrics() == expected_metrics
    assert outcome.state.best_evaluation == expected.state.best_evaluation
    check_each_row_once_per_epoch(folder.path, 90, 3)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == sorted(
        path.name for path in (Path(config.storage_path) / "uninterrupted/checkpoints").iterdir()
    )


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(["step:1"], marks=pytest.mark.long),
        pytest.param(["step:4"], marks=pytest.mark.long),
        pytest.param(["step:9", "step:5", "step:2"], marks=pytest.mark.long),
        pytest.param(["save:2"], marks=pytest.mark.long),
        ["save:3", "step:3"],
    ],
    ids="-".join,
)
def test_killed_and_run_again_the_result_is_the_same_to_the_bit(
    base: TrainConfig, uninterrupted: Any, points: list[str]
) -> None:
    """SIGKILL at several steps (in epoch 2 too), and in the middle of writing a checkpoint."""
    config = dataclasses.replace(base, run_name=f"killed-{'-'.join(points).replace(':', '')}")
    kill_and_run_again(config, points, uninterrupted)


def test_killed_at_random_the_result_is_the_same_to_the_bit(
    base: TrainConfig, uninterrupted: Any, pytestconfig: pytest.Config
) -> None:
    """`--random-kills 20` for more of them; a failure names its points, which can be given above."""
    kills = pytestconfig.getoption("--random-kills")
    seed = pytestconfig.getoption("--kill-seed")
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    print(f"--random-kills {kills} --kill-seed {seed}")  # noqa: T201
    draw = random.Random(seed)
    while kills > 0:
        points: list[str] = []
        saved = 0  # a checkpoint comes every six steps; points count from the one resumed from
        for _ in range(min(kills, 3)):
            left = LAST_STEP - saved
            place = draw.randrange(left + left // 6)
            count = place + 1 if place < left else place - left + 1
            points.append(f"{'step' if place < left else 'save'}:{count}")
            saved += (count - 1) // 6 * 6 if place < left else (count - 1) * 6
        kills -= len(points)
        print(points)  # noqa: T201
        config = dataclasses.replace(base, run_name=f"random-{seed}-{kills}")
        kill_and_run_again(config, points, uninterrupted)


@pytest.mark.parametrize("damaged", ["model.safetensors", "optimizer.pt", "MANIFEST.json"])
def test_a_damaged_checkpoint_costs_steps_and_nothing_else(
    base: TrainConfig, uninterrupted: Any, damaged: str
) -> None:
    config = dataclasses.replace(base, run_name=f"damaged-{damaged}", save_steps=3)
    _, folder = run_locally(config)
    path = folder.checkpoints / f"step-{LAST_STEP:08d}" / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcome, folder = run_locally(config)
    assert f"step-{LAST_STEP:08d} is damaged" in outcome.notes[0]
    assert weights_hash(folder, LAST_STEP) == uninterrupted[1]
    assert folder.metrics() == uninterrupted[2]


def test_asked_to_stop_it_saves_and_goes_on_exactly(base: TrainConfig, uninterrupted: Any) -> None:
    config = dataclasses.replace(base, run_name="asked-to-stop")
    folder = Path(base.storage_path) / "asked-to-stop"
    folder.mkdir()
    (folder / "stop-request").touch()
    outcome, run = run_locally(config)
    assert (outcome.status, outcome.state.step) == ("stopped", 1)
    run.stop_request.unlink()
    outcome, run = run_locally(config)
    assert outcome.status == "finished"
    assert weights_hash(run, LAST_STEP) == uninterrupted[1]
    assert run.metrics() == uninterrupted[2]


@pytest.mark.parametrize("save_steps", [None, 1])
def test_numbers_that_are_not_finite_stop_the_run_and_are_never_saved(
    base: TrainConfig, tiny_model: Path, tmp_path: Path, save_steps: int | None
) -> None:
    """By the loss, or by the weights of the first checkpoint."""
    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][7] = float("nan")  # a word that does not come in every step
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    config = dataclasses.replace(
        base, run_name=f"nan-{save_steps}", model_name_or_path=str(broken), save_steps=save_steps,
        train_batch_size=4,
    )  # fmt: skip
    outcome, folder = run_locally(config)
    assert outcome.status == "failed"
    failing = outcome.state.step
    said = str(outcome.error)
    if save_steps is None:
        assert failing > 1
        assert f"the loss of step {failing} is nan; lower --learning-rate" in said
    else:
        assert "after step 1 the weight" in said
        assert "word_embeddings.weight holds NaN or infinity; lower --learning-rate" in said
    assert not list(folder.checkpoints.glob("step-*"))


def test_weights_that_are_cut_off_are_one_sentence(
    base: TrainConfig, tiny_model: Path, tmp_path: Path
) -> None:
    """A download that broke off: safetensors has an exception of its own for it."""
    cut = tmp_path / "cut"
    shutil.copytree(tiny_model, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    outcome, _ = run_locally(dataclasses.replace(base, run_name="cut", model_name_or_path=str(cut)))
    assert outcome.status == "failed"
    assert "cut' could not be loaded (Error while deserializing header" in str(outcome.error)


def test_early_stopping_and_the_best_checkpoint(base: TrainConfig) -> None:
    config = dataclasses.replace(
        base, run_name="early", eval_steps=2, early_stopping_patience=2, num_train_epochs=20
    )
    outcome, folder = run_locally(config)
    assert outcome.state.stopped_early
    assert outcome.state.step < 20 * 6
    scores = [line["metrics"]["f1"] for line in folder.metrics() if "split" in line]
    assert outcome.state.best_score == max(scores)
    assert outcome.state.best_step == 2 * (scores.index(max(scores)) + 1)
    assert len(scores) == scores.index(max(scores)) + 3
    assert (folder.checkpoints / f"step-{outcome.state.best_step:08d}").is_dir()
    again, _ = run_locally(config)  # resumed after the end: nothing is done again
    assert again.state.step == outcome.state.step


@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "bf16"},
        {"gradient_checkpointing": True},
        {"init": "random", "dropout": 0.3},
        {"pad_to_max_length": True},
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.2, "weight_decay": 0.1},
        {"max_steps": 7, "max_grad_norm": 0.0},
        {"max_train_samples": 33},
    ],
    ids=str,
)
def test_every_option_trains(base: TrainConfig, changes: dict[str, Any]) -> None:
    name = "option-" + "-".join(changes).replace("_", "-")
    config = dataclasses.replace(base, run_name=name, num_train_epochs=1, **changes)
    outcome, folder = run_locally(config)
    assert outcome.status == "finished"
    assert outcome.state.step == {"max_steps": 7, "max_train_samples": 3}.get(
        next(iter(changes)), 6
    )
    losses = [line["loss"] for line in folder.metrics() if "loss" in line]
    assert all(np.isfinite(losses))


def test_padding_does_not_change_the_loss(base: TrainConfig, tiny_model: Path) -> None:
    """Without dropout (whose mask has the batch's shape), padded width changes nothing."""
    still = Path(base.storage_path) / "still-model"
    still.mkdir()
    for path in tiny_model.iterdir():
        (still / path.name).write_bytes(path.read_bytes())
    settings = json.loads((still / "config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(settings))
    traces: list[list[float]] = []
    for changes in ({"pad_to_multiple_of": 8}, {"pad_to_max_length": True}, {}):
        config = dataclasses.replace(
            base, model_name_or_path=str(still), run_name=f"pad{len(traces)}", **changes
        )
        _, folder = run_locally(config)
        traces.append([line["loss"] for line in folder.metrics() if "loss" in line])
    assert traces[0] == pytest.approx(traces[1], rel=1e-5)
    assert traces[0] == pytest.approx(traces[2], rel=1e-5)


def test_transformers_trainer_agrees_with_our_loop(
    base: TrainConfig, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer leaves the schedule where it is after a step that it takes for skipped; we do not."""
    skipped = itertools.cycle([True, False])
    monkeypatch.setattr(
        Accelerator, "optimizer_step_was_skipped", property(lambda _: next(skipped))
    )
    config = dataclasses.replace(base, run_name="trainer", loop="trainer")
    outcome, folder = run_locally(config)
    assert outcome.status == "finished"
    ours = [line["loss"] for line in uninterrupted[2] if "loss" in line]
    theirs = [line["loss"] for line in folder.metrics() if "loss" in line]
    assert theirs == pytest.approx(ours, rel=1e-5)
    rates = [
        [line.get("learning_rate") for line in lines]
        for lines in (uninterrupted[2], folder.metrics())
    ]
    assert rates[0] == rates[1]
    check_each_row_once_per_epoch(folder.path, 90, 3)
    mine = load_file(
        Path(base.storage_path)
        / f"uninterrupted/checkpoints/step-{LAST_STEP:08d}/model.safetensors"
    )
    other = load_file(folder.checkpoints / f"step-{LAST_STEP:08d}/model.safetensors")
    for name in mine:
        torch.testing.assert_close(other[name], mine[name], rtol=1e-4, atol=1e-5)
