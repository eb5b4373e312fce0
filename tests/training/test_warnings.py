"""Warnings of a run: in its record, its JSON line and its model card; advice on speed is in none."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from trainyard.config import TrainConfig
from trainyard.training.driver import fit as training
from trainyard.training.driver.pace import slow_settings
from trainyard.training.driver.restarts import worker_function

ROWS = 600


def test_each_warning_of_a_run_is_in_its_record_its_json_and_its_card(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def supervise(config: TrainConfig, task: Any, data: Any, folder: Any, *_: Any) -> Any:
        return worker_function(config, task, data, folder, threads=1)()

    monkeypatch.setattr(training, "ray_session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(training, "worker_resources", lambda _: {"CPU": 1.0})
    monkeypatch.setattr(training, "preflight", lambda _: None)
    monkeypatch.setattr(training, "_supervise", supervise)
    labels = ("Spam", "spam", "ham", "-1")
    lines = [f"{'ba ' * (n % 7)}co {n},{labels[n % 4]}" for n in range(ROWS)]
    (tmp_path / "mail.csv").write_text("\n".join(["text,label", *lines, "ba,ham", "ba,Spam"]))
    config = TrainConfig(
        train_file=str(tmp_path / "mail.csv"), model_name_or_path=str(tiny_model), max_length=32,
        max_steps=2, train_batch_size=16, per_device_train_batch_size=4,
        storage_path=str(tmp_path / "runs"),
    )  # fmt: skip
    result = training.fit(config)
    said = capsys.readouterr().err
    (faster,) = slow_settings(config, ROWS)
    assert faster[:60] in said
    sentences = ("warning: the labels 'Spam', 'spam' of mail.csv differ only by case",
                 "warning: -1 is a label in mail.csv",
                 " texts of train occur with different labels")  # fmt: skip
    record = json.loads((Path(result.model).parent / "run.json").read_text())
    card = (Path(result.model) / "README.md").read_text()
    printed = json.loads(json.dumps(result.as_json()))
    for warnings in (record["warnings"], record["result"]["warnings"], printed["warnings"]):
        assert warnings == list(result.warnings)
        for sentence in sentences:
            assert len([each for each in warnings if sentence in each]) == 1
        assert "faster" not in " ".join(warnings)
    assert card.partition("## Warnings")[2].partition("## Limits")[0].strip() == "\n".join(
        f"- {each.removeprefix('warning: ')}" for each in result.warnings
    )
    assert not [each for each in result.warnings if "held out" in each]
    assert (printed["task"], printed["data_name"]) == ("own", "mail")
    exported = json.loads((Path(result.model) / "config.json").read_text())
    assert exported["trained_max_length"] == 32
