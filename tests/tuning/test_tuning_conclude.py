"""What a sweep says from folders alone: the verdict, the reason for none, the time, what is damaged."""

import csv
import dataclasses
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainyard.command import parse
from trainyard.config import TrainConfig
from trainyard.data.splits import selection_and_test
from trainyard.errors import UserError
from trainyard.fleet import Fleet, tokenization_of
from trainyard.signals import StopSignals
from trainyard.storage.folder import RunFolder
from trainyard.storage.lease import LEASE, this_process
from trainyard.storage.sweep_folder import SweepFolder, TrialRecord, TrialSpec
from trainyard.tasks import TASKS
from trainyard.tuning.conclude import conclude
from trainyard.tuning.config import SweepConfig
from trainyard.tuning.confirm import (
    DEFAULT,
    confirmation_rows,
    rank_on_searched_rows,
    run_name,
    verdict_of,
)
from trainyard.tuning.searchers import rank
from trainyard.tuning.space import build_space
from trainyard.tuning.sweep import Clock, rows_set_aside
from trainyard.tuning.trials import Context, find_data, prepare_all, tokenizations

CONFIG = SweepConfig(task="mrpc", confirm_seeds=2)
SPACE = build_space("default", ["weight_decay=0"], CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A sweep of two trials whose better one was run again, as was the default recipe."""
    folder = SweepFolder(tmp_path / "sweep")
    folder.path.mkdir()
    folder.update(kind="sweep", identity="x", config={}, data_fingerprint={})
    add(folder, "trial-0000", 0.8, learning_rate=5e-5, weight_decay=0.0)
    add(folder, "trial-0001", 0.9, learning_rate=4e-4, weight_decay=0.0)
    for number in range(2):
        for recipe, rate, score in ((DEFAULT, 5e-5, 0.85), ("trial-0001", 4e-4, 0.7)):
            add(folder, run_name(recipe, number), score, "confirmation", learning_rate=rate)
    return folder


def add(folder: SweepFolder, name: str, score: float, kind: Any = "search", **point: Any) -> None:
    index = len(folder.records(kind))
    run = folder.add(TrialSpec(index=index, name=name, hyperparameters=point, kind=kind))
    run.model.mkdir()
    (run.model / "config.json").write_text(name)
    config = dataclasses.asdict(CONFIG.train_config(point))
    result = {"score": score, "metrics": {"validation": {"f1": score}}}
    run.update(status="finished", config=config, result=result, trial_score=score)


def test_where_the_winner_is_worse_the_default_recipe_is_the_result(folder: SweepFolder) -> None:
    block = {"mean": 0.85, "interval": [0.8, 0.9]}
    winner = {"trial": "trial-0001", "mean": 0.7, "corrected": 0.69, "interval": [0.6, 0.75]}
    confirmation = {"verdict": "worse", "winner": winner, "default": block, "candidates": [winner]}
    result = conclude(
        folder, TASKS["mrpc"], SPACE, rank(folder.records()), confirmation, "", 12.0
    )  # fmt: skip
    assert (result.verdict, result.best_trial) == ("worse", DEFAULT)
    assert (result.score, result.interval) == (0.85, [0.8, 0.9])
    assert result.best_hyperparameters == {"learning_rate": 5e-5, "weight_decay": 0.0}
    assert (folder.model / "config.json").read_text() == "default-seed-0"
    assert "the winner is worse than the default recipe" in folder.best_config.read_text()
    assert parse(TrainConfig, ["--config", result.best_config]).learning_rate == 5e-5


def test_the_warnings_of_the_recommended_run_are_those_of_the_sweep(folder: SweepFolder) -> None:
    for trial, words in zip(folder.records(), ("rows were cut", "rows are empty"), strict=True):
        trial.run.update(warnings=[words], data_name="mail")
    result = conclude(folder, TASKS["mrpc"], SPACE, rank(folder.records()), None, "", 12.0)
    assert result.best_trial == "trial-0001"
    assert result.as_json()["warnings"] == folder.read()["warnings"] == ["rows are empty"]
    assert folder.read()["result"]["warnings"] == ["rows are empty"]
    assert result.as_json()["data_name"] == "mail"


def test_all_trials_get_the_warnings_about_their_data(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{'ba ' * 20}co {n},{'Spam' if n % 2 else 'spam'}\n" for n in range(40))
    (tmp_path / "mail.csv").write_text(f"text,label\n{rows}")
    config = SweepConfig(
        train_file=str(tmp_path / "mail.csv"), model_name_or_path=str(tiny_model), max_length=32,
        set=(("max_length=choice:8",),),
    )  # fmt: skip
    runs = tokenizations(config, build_space("default", config.overrides, config))
    found = prepare_all(find_data(runs), runs, SweepFolder(tmp_path / "s"))
    for (_, length), data in found.items():
        assert data.warnings[0].startswith("warning: the labels 'Spam', 'spam' of mail.csv differ")
        cut = [each for each in data.warnings if "cut to" in each]
        assert all(f"were cut to --max-length {length} tokens" in each for each in cut)
        assert bool(cut) == (length == 8)
    assert capsys.readouterr().err.count("differ only") == 1


def context(folder: SweepFolder) -> Context:
    where = {"search": folder.trials, "confirmation": folder.confirmation}
    return Context(
        sweep="sweep", config=CONFIG, task=TASKS["mrpc"], data={}, per_worker={}, folders=where
    )


@pytest.mark.parametrize("lost", ["default-seed-1", "trial-0001-seed-0"])
def test_a_sweep_that_is_not_confirmed_says_why(folder: SweepFolder, lost: str) -> None:
    ranked = rank(folder.records())
    run = next(r.run for r in folder.records("confirmation") if r.spec.name == lost)
    run.update(status="failed", reason="OSError: No space left on device; see error.txt")
    confirmation, why = verdict_of(folder, context(folder), ranked[:1], {})
    assert confirmation is None
    assert why == f"{lost} failed (OSError: No space left on device; see error.txt)"
    result = conclude(folder, TASKS["mrpc"], SPACE, ranked, None, why, 12.0)
    assert (result.verdict, result.best_trial) == (None, "trial-0001")
    assert folder.read()["reason"] == why
    assert f"not confirmed: {why}" in folder.best_config.read_text()


@pytest.mark.parametrize("generation", [1, None])
def test_hyperparameters_of_the_last_stretch_are_called_so(
    folder: SweepFolder, generation: int | None
) -> None:
    ranked = [
        dataclasses.replace(trial, spec=dataclasses.replace(trial.spec, generation=generation))
        for trial in rank(folder.records())
    ]
    conclude(folder, TASKS["mrpc"], SPACE, ranked, None, "", 12.0)
    head = folder.best_config.read_text().splitlines()[0]
    assert ("does not reproduce the model" in head) == (generation is not None)


def test_a_trial_killed_while_it_was_stopping_is_closed_and_holds_nothing(
    folder: SweepFolder,
) -> None:
    run = folder.records()[0].run
    run.update(status="running", trial_score=None)
    run.append_metrics({"step": 6, "split": "validation", "metrics": {"f1": 0.6}})
    lost = {**this_process(), "ticks": 0}
    (run.path / LEASE).write_text(json.dumps(lost))
    run.stop_request.touch()
    splits: Any = SimpleNamespace(folders=("train", "validation"))
    trials = dataclasses.replace(context(folder), data={("model", 32): splits})
    with folder.lease() as lease:
        fleet = Fleet(
            folder=folder, lease=lease, concurrent=1, restarts=0, shared=trials.shared,
            signals=StopSignals(folder.stop_request),
        )  # fmt: skip
        fleet.settle(trials.run(folder.records()[0].spec), None)
    closed = folder.records()[0]
    assert (closed.status, closed.score, closed.evaluations) == ("pruned", 0.6, 1)
    assert not (run.path / LEASE).exists()
    assert not run.stop_request.exists()


def test_the_default_recipe_is_tokenized_though_the_space_leaves_it_out(
    small_run: TrainConfig, tmp_path: Path
) -> None:
    own = {field.name: getattr(small_run, field.name) for field in dataclasses.fields(TrainConfig)}
    config = SweepConfig(**own, set=(("max_length=choice:8,16",),))
    space, folder = build_space("default", config.overrides, config), SweepFolder(tmp_path / "s")
    runs = tokenizations(config, space)
    found = prepare_all(find_data(runs), runs, folder)
    assert [length for _, length in found] == [8, 16, 32]
    assert tokenization_of(config.base) in found
    runs = tokenizations(dataclasses.replace(config, confirm_seeds=0), space)
    assert [run.max_length for run in runs] == [8, 16]


def test_a_trial_that_diverged_has_no_score_whatever_it_had_before(folder: SweepFolder) -> None:
    add(folder, "trial-0002", 0.99, learning_rate=9e-4, weight_decay=0.0)
    folder.records()[-1].run.update(status="diverged", trial_score=0.99)
    ranked = rank(folder.records())
    assert [trial.spec.name for trial in ranked][::2] == ["trial-0001", "trial-0002"]
    conclude(folder, TASKS["mrpc"], SPACE, ranked, None, "", 12.0)
    rows = list(csv.DictReader((folder.path / "trials.csv").open()))
    assert [row["score"] for row in rows] == ["0.8", "0.9", ""]
    assert {path.name for path in folder.tensorboard.iterdir()} == {"trial-0000", "trial-0001"}


def test_a_damaged_folder_is_refused(folder: SweepFolder) -> None:
    for damage in ('{"kind": "sw', "[]", "", '{"kind": "sweep"}'):
        (folder.path / "sweep.json").write_text(damage)
        with pytest.raises(UserError, match=r"sweep.json is damaged; use --fresh to start this"):
            folder.read()
    (folder.path / "sweep.json").unlink()
    (folder.path / "sweep.json").mkdir()
    with pytest.raises(UserError, match=r"sweep.json is damaged; use --fresh to start this"):
        folder.read()
    (folder.path / "sweep.json").rmdir()
    for damage in ("[]", '{"status": "fin', "\x00"):
        (folder.trials / "trial-0000" / "run.json").write_text(damage)
        with pytest.raises(UserError, match=r"run.json is damaged; use --fresh"):
            folder.records()
    (folder.trials / "trial-0000" / "trial.json").write_text("{}")
    with pytest.raises(UserError, match=r"trial.json is damaged; use --fresh"):
        folder.records()
    (folder.path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="is the folder of a single run, not of a sweep"):
        folder.read()


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"loss": 1}', b"\xff", b'{"step": "one"}'])
def test_a_damaged_line_of_metrics_is_one_sentence(folder: SweepFolder, line: bytes) -> None:
    folder.check_records()
    run: TrialRecord = folder.records("confirmation")[0]
    (run.run.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged; use --fresh to start this"):
        folder.check_records()


@pytest.mark.parametrize("damage", [None, b"", b"\x93NUMPY", b"no array"])
def test_damaged_predictions_are_one_sentence(folder: SweepFolder, damage: bytes | None) -> None:
    run = folder.records("confirmation")[0].run
    run.predictions.mkdir()
    np.save(run.predictions / "validation.npy", np.zeros((3, 2), np.float32))
    assert run.read_predictions("validation").shape == (3, 2)
    (run.predictions / "validation.npy").unlink()
    if damage is not None:
        (run.predictions / "validation.npy").write_bytes(damage)
    with pytest.raises(UserError, match=r"validation.npy is damaged; delete .*, and the same com"):
        run.read_predictions("validation")


def test_the_confirmation_takes_no_time_from_the_search(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([100.0, 130.0, 190.0])
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    clock = Clock(folder, {"seconds": 50.0, "search_seconds": 20.0})
    clock.end_search()
    clock.write()
    assert (folder.read()["seconds"], folder.read()["search_seconds"]) == (140.0, 50.0)


LABELS = np.arange(200) % 2


def write_answers(run: Any, right: Any) -> None:
    run.predictions.mkdir(exist_ok=True)
    answers = np.where(right, LABELS, 1 - LABELS)
    np.save(run.predictions / "validation.npy", np.eye(2, dtype=np.float32)[answers])


@pytest.fixture
def searched_all_rows(folder: SweepFolder) -> Context:
    """A sweep of an earlier version: trials were scored on all rows.

    trial-0000 stands higher, but only for the rows that are now set aside to confirm.
    """
    config = dataclasses.replace(CONFIG, confirm_seeds=3, confirm_top=1)
    tables = SimpleNamespace(labels=LABELS)
    data: Any = SimpleNamespace(folders=("train", "validation"), table=lambda _: tables)
    searched = np.zeros(200, np.bool_)
    searched[selection_and_test(LABELS, 0.5)[0]] = True
    write_answers(folder.records()[0].run, ~searched)
    write_answers(folder.records()[1].run, searched)
    for trial, score in zip(folder.records(), (0.9, 0.8), strict=True):
        trial.run.update(trial_score=score)
    for number in range(3):
        for recipe in (DEFAULT, "trial-0001"):
            if number == 2:
                add(folder, run_name(recipe, number), 0.8, "confirmation", learning_rate=1e-4)
            run = RunFolder(folder.confirmation / run_name(recipe, number))
            write_answers(run, searched if recipe != DEFAULT else np.arange(200) % 10 > number)
    return dataclasses.replace(context(folder), config=config, data={("model", 32): data})


def test_a_sweep_of_an_earlier_version_is_confirmed_on_rows_that_did_not_choose(
    folder: SweepFolder, searched_all_rows: Context
) -> None:
    folder.update(confirmation={"verdict": "better"})  # what that version said
    ranked = rank(folder.records())
    assert [trial.spec.name for trial in ranked] == ["trial-0000", "trial-0001"]
    best = rank_on_searched_rows(searched_all_rows, ranked)
    assert [trial.spec.name for trial in best] == ["trial-0001", "trial-0000"]
    confirmation, why = verdict_of(folder, searched_all_rows, best[:1], {})
    assert confirmation is not None
    assert (why, confirmation["verdict"], confirmation["withheld"]) == ("", "worse", None)
    assert confirmation["method"] == "rows set aside after a search that saw them"
    assert confirmation["winner"]["corrected"] == 0
    assert confirmation["winner"]["mean"] == 0.5  # on all rows, as ever
    assert (confirmation["look"], len(folder.read()["looks"])) == (2, 2)
    again, _ = verdict_of(folder, searched_all_rows, best[:1], {})
    assert again == confirmation  # the same comparison is no further look


def test_without_the_predictions_of_all_trials_there_is_no_verdict(
    folder: SweepFolder, searched_all_rows: Context
) -> None:
    shutil.rmtree(folder.records()[0].run.predictions)
    ranked = rank(folder.records())
    assert rank_on_searched_rows(searched_all_rows, ranked) == ranked
    confirmation, _ = verdict_of(folder, searched_all_rows, ranked[1:], {})
    assert confirmation is not None
    assert confirmation["verdict"] is None
    assert "trial-0000 left no predictions" in confirmation["withheld"]
    result = conclude(folder, TASKS["mrpc"], SPACE, ranked, confirmation, "", 12.0)
    assert (result.verdict, result.best_trial) == (None, "trial-0001")
    assert "no verdict: the search saw all rows" in folder.best_config.read_text()


@pytest.mark.parametrize(
    ("flags", "known", "share"),
    [
        ({}, {}, 0.5),  # half of the rows confirm
        ({"test_share": 0.3}, {}, 0.3),
        ({"confirm_seeds": 0}, {}, 0.0),
        ({}, {"identity": "x"}, 0.0),  # an earlier version searched all rows
        ({}, {"identity": "x", "test_share": 0.5}, 0.5),
    ],
)
def test_a_search_does_not_see_the_rows_that_confirm(
    flags: dict[str, Any], known: dict[str, Any], share: float
) -> None:
    assert rows_set_aside(dataclasses.replace(CONFIG, **flags), known) == share


@pytest.mark.parametrize(
    ("default", "winner", "withheld"),
    [(0, 0, True), (0, 1, True), (0, None, False)],  # a class for every row, or half of the rows
)
def test_recipes_that_give_one_answer_for_every_row_get_no_verdict(
    folder: SweepFolder,
    searched_all_rows: Context,
    default: int,
    winner: int | None,
    withheld: bool,
) -> None:
    for number in range(3):
        for recipe, answer in ((DEFAULT, default), ("trial-0001", winner)):
            run = RunFolder(folder.confirmation / run_name(recipe, number))
            write_answers(run, np.arange(200) < 150 if answer is None else answer == LABELS)
    ranked = rank_on_searched_rows(searched_all_rows, rank(folder.records()))
    confirmation, _ = verdict_of(folder, searched_all_rows, ranked[:1], {})
    assert confirmation is not None
    assert (confirmation["verdict"] is None) == withheld
    if withheld:
        conclude(folder, TASKS["mrpc"], SPACE, ranked, confirmation, "", 12.0)
        said = (
            "no verdict: the winner and the default recipe give one answer for every row with each"
        )
        assert said in folder.best_config.read_text()


@pytest.mark.parametrize(
    ("tables", "pairs"),
    [
        ({"validation": 5, "validation_test": 3}, [("validation", "validation_test")]),
        ({"validation": 5, "test": 9}, [("validation", "test")]),  # --test-file confirms
        (
            {"m": 4, "m_test": 3, "mm": 2, "mm_test": 6},
            [("m", "m_test"), ("mm", "mm_test")],
        ),
    ],
)
def test_splits_that_were_set_aside_confirm(
    folder: SweepFolder, tables: dict[str, int], pairs: list[tuple[str, str]]
) -> None:
    labels = {name: np.full(rows, i) for i, (name, rows) in enumerate(tables.items())}
    data: Any = SimpleNamespace(
        folders=("train", *tables), table=lambda name: SimpleNamespace(labels=labels[name])
    )
    found = confirmation_rows(dataclasses.replace(context(folder), data={("model", 32): data}))
    assert [part.splits for part in found] == pairs
    for part in found:
        searched, confirming = (labels[name] for name in part.splits)
        assert part.references[part.searched].tolist() == searched.tolist()
        assert part.references[~part.searched].tolist() == confirming.tolist()
