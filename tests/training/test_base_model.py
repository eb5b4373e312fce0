"""Base models in a local folder: relative paths, and weights that change."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_sweeps import small_sweep

from trainyard import TrainConfig, UserError, fit
from trainyard.command import parse
from trainyard.inference import PredictConfig, predict
from trainyard.storage import RunFolder
from trainyard.tuning import tune


@pytest.fixture
def here(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds `my-model`; workers have another one."""
    shutil.copytree(tiny_model, tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + torch.ones(())
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_a_relative_folder_trains_and_its_weights_are_recorded(
    cluster: Any,  # noqa: ARG001
    small_run: TrainConfig,
    here: Path,
) -> None:
    config = dataclasses.replace(
        small_run, model_name_or_path="my-model", storage_path="runs", run_name="relative",
        max_steps=2, resources_per_worker={"CPU": 1},
    )  # fmt: skip
    result = fit(config)
    record = RunFolder(here / "runs/relative").read()
    # The name of a run is a function of what was written, wherever the folder is.
    assert record["config"]["model_name_or_path"] == "my-model"
    assert record["identity"] == config.identity()
    assert fit(config) == result

    (here / "my-model/calibration.json").write_text("{}")  # decides nothing about training
    assert fit(config) == result
    settings = here / "my-model/tokenizer_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps({**json.loads(before), "do_lower_case": True}))
    for status in ("stopped", "finished"):
        RunFolder(here / "runs/relative").update(status=status)
        with pytest.raises(
            UserError,
            match=r"the tokenizer of run 'relative' \(my-model\) has changed since it was",
        ):
            fit(config)
    settings.write_text(before)
    change_weights(here / "my-model")
    sentence = r"the base weights of run 'relative' \(my-model\) have changed since it was started"
    with pytest.raises(UserError, match=sentence):
        fit(config)
    RunFolder(here / "runs/relative").update(status="stopped")
    with pytest.raises(UserError, match=sentence):
        fit(config)
    shutil.rmtree(here / "my-model")
    RunFolder(here / "runs/relative").update(status="finished")
    assert fit(config) == result  # a base model that is gone changes nothing

    (here / "rows.csv").write_text("sentence1,sentence2\nba,da\nco,da\n")
    predict(
        PredictConfig(
            model_name_or_path="runs/relative/model", input_file="rows.csv",
            output_file="answers.jsonl", num_workers=2, resources_per_worker={"CPU": 1},
        )
    )  # fmt: skip
    assert len((here / "answers.jsonl").read_text().splitlines()) == 2


@pytest.mark.long
def test_a_sweep_on_a_relative_folder_and_its_best_config_in_train(
    cluster: Any,  # noqa: ARG001
    small_run: TrainConfig,
    here: Path,
) -> None:
    config = dataclasses.replace(
        small_sweep(small_run, here / "runs"), model_name_or_path="./my-model", num_trials=2,
        confirm_seeds=0, run_name="sweep", scheduler="fifo",
    )  # fmt: skip
    result = tune(config)
    flags = ["--config", result.best_config, "--storage-path", str(here / "runs"),
             "--run-name", "best", "--resources-per-worker", "CPU", "1"]  # fmt: skip
    best = parse(TrainConfig, flags)
    assert best.model_name_or_path == "./my-model"
    assert fit(best).score == result.score
    change_weights(here / "my-model")
    with pytest.raises(UserError, match=r"the base weights of sweep 'sweep' changed"):
        tune(dataclasses.replace(config, num_trials=3))
