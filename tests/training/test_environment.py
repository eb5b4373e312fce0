"""A run is a function of its config, and its bits also of packages and processor: both are recorded."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from trainyard.batch_plan import PLAN_VERSION
from trainyard.config import TrainConfig
from trainyard.data.splits import find_splits
from trainyard.data.tokenize import PreparedData, prepare
from trainyard.models.build import build_tokenizer
from trainyard.storage.folder import RunFolder
from trainyard.tasks import TASKS
from trainyard.training.driver.environment import (
    differences,
    environment,
    recorded_environment,
)
from trainyard.training.driver.export import model_card
from trainyard.training.driver.fit import _open_record, fit
from trainyard.training.driver.result import AnotherRun, FitResult, earlier_result


@pytest.fixture(scope="module")
def data(small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    splits, tokenizer = find_splits(small_run), build_tokenizer(small_run)
    return prepare(splits, tokenizer, small_run, tmp_path_factory.mktemp("cache"))


def other(here: dict[str, Any], **packages: str) -> dict[str, Any]:
    return {**here, "packages": {**here["packages"], **packages}}


def test_the_texts_that_train_and_choose_the_model_are_recorded(
    small_run: TrainConfig, data: PreparedData, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    _open_record(folder, small_run, data, None, environment(small_run, 1))
    assert folder.read()["text_sketches"] == data.texts
    assert list(data.texts) == ["train", "validation"]


def test_an_attempt_in_another_environment_warns_and_is_recorded(
    small_run: TrainConfig, data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, here = RunFolder(tmp_path), environment(small_run, 1)
    folder.create()
    for _ in range(2):  # the same environment again is not news
        _open_record(folder, small_run, data, None, here)
    assert folder.read()["environments"] == [here]
    assert not capsys.readouterr().err
    changed = other(here, torch="9.9")
    _open_record(folder, small_run, data, None, changed)
    assert folder.read()["environments"] == [here, changed]
    said = capsys.readouterr().err
    assert f"another environment (torch {here['packages']['torch']} -> 9.9)" in said
    assert "need not be bit-identical" in said


def test_device_and_processor_count_and_unknown_values_do_not(small_run: TrainConfig) -> None:
    here = environment(small_run)
    assert differences(here, {**here, "threads": 2}) == []
    assert differences(here, environment(replace(small_run, use_gpu=True))) == ["device cpu -> gpu"]
    assert differences({**here, "processor": "another"}, here)[0].startswith(
        "processor another -> "
    )
    first_version = {"versions": {"torch": "1.0", "python": here["packages"]["python"]}}
    torch = here["packages"]["torch"]
    assert differences(recorded_environment(first_version), here) == [f"torch 1.0 -> {torch}"]


def test_a_run_that_failed_before_its_record_was_made_is_no_earlier_result(
    small_run: TrainConfig, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    folder.update(status="failed", reason="the Hub did not answer", seconds={"start_up": 1.0})
    assert earlier_result(small_run, folder) is None


def test_the_model_card_says_which_splits_chose_the_checkpoint(small_run: TrainConfig) -> None:
    run = {"name": "r", "data_fingerprint": "d", "identity": "i", "versions": {"commit": None}}
    found = {"metrics": {"f1": 0.5}, "intervals": {"f1": [0.4, 0.6]}}
    for splits, sentence in (
        (["validation"], "validation also chose this checkpoint among those of the run."),
        (
            ["validation_matched", "validation_matched_test"],
            "validation_matched also chose this checkpoint among those of the run; "
            "validation_matched_test took no part in it.",
        ),
    ):
        card = model_card(small_run, TASKS["mrpc"], run, dict.fromkeys(splits, found), {})
        assert sentence in card.splitlines()


def test_the_model_card_names_base_model_data_labels_warnings_and_limits() -> None:
    run: dict[str, Any] = {
        "name": "r", "data_fingerprint": "d", "identity": "i", "versions": {"commit": None},
        "base_model_digest": "f00d", "warnings": ["warning: 3 rows of train hold no text at all"],
        "sweep": "s",
    }  # fmt: skip
    found = {"validation": {"metrics": {"f1": 0.5, "accuracy": 1.0},
                            "intervals": {"f1": [0.4, 0.6], "accuracy": [1.0, 1.0]}}}  # fmt: skip
    rows = {"train": 90, "validation": 37}
    config = TrainConfig(task="mrpc")
    card = model_card(config, TASKS["mrpc"], run, found, rows)
    for part in (
        'base_model: "sentence-transformers/all-MiniLM-L6-v2"',
        "digest of its weights `f00d`, fine-tuned on `mrpc` (single_label_classification)",
        "| validation | f1 | 0.5000 | 0.4000 to 0.6000 |",
        "| validation | accuracy | 1.0000 | no interval: all resamples of the rows agree |",
        "Rows: 90 of train, 37 of validation. Labels: `not_equivalent`, `equivalent`.",
        "## Warnings\n\n- 3 rows of train hold no text at all\n\n## Limits",
        "Sweep `s` compared its recipe with others on rows of validation.",
        "- Only the first 128 tokens of a text were read in training and evaluation.",
    ):
        assert part in card
    card = model_card(
        replace(config, model_name_or_path="a/b"), TASKS["mrpc"],
        {**run, "model_revision": "c0ffee", "warnings": []}, found, rows,
    )  # fmt: skip
    assert 'base_model: "a/b"' in card
    assert "`a/b`, commit `c0ffee`, fine-tuned" in card
    assert "## Warnings" not in card
    # A path is no Hub id, which a push to the Hub would refuse.
    own = replace(config, model_name_or_path="/models/own")
    assert "base_model:" not in model_card(own, TASKS["mrpc"], run, found, rows)


def write_moments(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").write_text("moments")


def finish(folder: RunFolder, config: TrainConfig) -> None:
    """Write the record of a finished run, and a model."""
    folder.create()
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    (folder.model / "model.safetensors").touch()
    result = FitResult(
        run="run", task="own", score=1.0, metrics={}, intervals={}, model="", seconds=1.0, best_step=1,
        steps=1, train_samples_per_second=None, padding_efficiency=1.0, truncated_rows={},
    )  # fmt: skip
    folder.update(
        name="run", status="finished", config=asdict(config), plan_version=PLAN_VERSION,
        data_sources={split.name: split.digest for split in find_splits(config).splits},
        result=asdict(result), environments=[environment(config)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recorded", "given", "kept"),
    [(False, False, False), (False, True, True), (True, False, True), (None, False, True)],
)
def test_a_finished_run_drops_the_optimizer_state_that_a_crash_left(
    recorded: bool | None, given: bool, kept: bool, small_run: TrainConfig, tmp_path: Path
) -> None:
    """The state stays if the run or this command keeps it; the first version recorded no choice."""
    config = replace(
        small_run, storage_path=str(tmp_path), run_name="run", keep_optimizer_state=given
    ).as_begun(None)
    folder = RunFolder(tmp_path / "run")
    finish(folder, config)
    record = {**folder.read()["config"], "keep_optimizer_state": recorded}
    if recorded is None:
        del record["keep_optimizer_state"]
    folder.update(config=record)
    store = folder.store()
    store.claim()
    store.commit(1, write_moments)
    assert fit(config).score == 1.0
    assert (store.path(1) / "optimizer.pt").exists() == kept
    assert store.steps() == [1]


def test_a_finished_run_on_a_data_set_in_a_folder_that_changed_is_another_run(
    small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows, folder = tmp_path / "set", RunFolder(tmp_path / "run")
    rows.mkdir()
    for split in ("train", "validation"):
        (rows / f"{split}.csv").write_text("text,label\nba,x\nco,y\n")
    config = TrainConfig(
        dataset_name=str(rows), model_name_or_path=small_run.model_name_or_path
    ).as_begun(None)
    finish(folder, config)
    found = earlier_result(config, folder)
    assert found is not None
    assert found.score == 1.0
    (rows / "train.csv").write_text("text,label\nba,x\nco,y\nco,x\n")
    with pytest.raises(AnotherRun, match="the data of run 'run' has changed since it was trained"):
        earlier_result(config, folder)
