"""`evaluate` on real (tiny) models: every row once at any worker count, whatever the source."""

import contextlib
import dataclasses
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ray.exceptions import OutOfMemoryError
from ray.train import WorkerGroupError
from support.runs_locally import run_locally

from trainyard.config import TrainConfig
from trainyard.data.held_out import text_hashes
from trainyard.data.splits import Split
from trainyard.data.text_sketch import TextSketch
from trainyard.errors import UserError
from trainyard.evaluation import run as evaluation
from trainyard.evaluation.config import EvalConfig
from trainyard.evaluation.inputs import _recorded_length, describe, max_length
from trainyard.evaluation.report import _results
from trainyard.evaluation.run import (
    _stored_temperature,
    evaluate,
    predict_on_ray,
    predict_splits,
)
from trainyard.report.kit.page import Text


@pytest.fixture(scope="module")
def model(small_run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a small run, with its tokenizer: what model/ holds."""
    from transformers import AutoTokenizer

    storage = tmp_path_factory.mktemp("judged")
    config = dataclasses.replace(small_run, storage_path=str(storage), run_name="run")
    outcome, folder = run_locally(config)
    checkpoint = folder.checkpoints / f"step-{outcome.state.best_step:08d}"
    for name in ("config.json", "model.safetensors"):
        (folder.model).mkdir(exist_ok=True)
        shutil.copy(checkpoint / name, folder.model / name)
    AutoTokenizer.from_pretrained(config.model_name_or_path).save_pretrained(folder.model)
    (folder.path / "run.json").write_text(json.dumps({"config": dataclasses.asdict(config)}))
    (folder.path / "outcome.json").write_text(json.dumps(outcome.state.best_evaluation))
    return folder.model


def judge(model: Path, small_run: TrainConfig, tmp_path: Path, **fields: Any) -> dict[str, Any]:
    config = EvalConfig(
        model_name_or_path=str(model),
        data_dir=None if "validation_file" in fields else small_run.data_dir,
        storage_path=str(tmp_path),
        resources_per_worker={"CPU": 1},
        **fields,
    )
    found = evaluate(config)
    details: dict[str, Any] = json.loads((found.folder / "evaluation.json").read_text())
    assert json.loads(json.dumps(details)) == json.loads(json.dumps(found.details))
    assert "<html" in (found.folder / "report.html").read_text()
    assert found.as_json()["score"] == details["score"]
    return details


def by_hand(model: Path, path: Path) -> tuple[list[str], list[str]]:
    """Answers and labels by a plain transformers pipeline, row by row."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(model), max_length=32, truncation=True)
    rows = pq.read_table(path).to_pylist()
    answers = [
        classify({"text": row["sentence1"], "text_pair": row["sentence2"]})["label"] for row in rows
    ]
    names = ("not_equivalent", "equivalent")
    return answers, [names[row["label"]] for row in rows]


def test_one_worker_two_and_a_plain_pipeline_agree(
    cluster: Any,  # noqa: ARG001
    model: Path,
    small_run: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one is this process, by the function that workers run: their start takes seconds."""
    two = judge(model, small_run, tmp_path, run_name="two", slice_columns=("idx",), num_workers=2)
    counted: list[int] = []
    monkeypatch.setattr(
        "trainyard.evaluation.run.predict_on_ray",
        lambda jobs, *_: [
            predict_splits(*job, use_gpu=False, progress=counted.append) for job in jobs
        ],
    )
    one = judge(model, small_run, tmp_path, run_name="one", slice_columns=("idx",))
    assert one["splits"] == two["splits"]
    assert sum(counted) == 37
    found = one["splits"]["validation"]
    trained = json.loads((model.parent / "outcome.json").read_text())["validation"]
    assert (found["metrics"], found["eval_loss"]) == (trained["metrics"], trained["eval_loss"])
    answers, labels = by_hand(model, Path(str(small_run.data_dir)) / "mrpc/validation.parquet")
    right = np.mean([a == b for a, b in zip(answers, labels, strict=True)])
    assert found["metrics"]["accuracy"] == pytest.approx(right)
    assert sum(map(sum, found["confusion"])) == found["rows"] == 37
    wrong = {i for i, (a, b) in enumerate(zip(answers, labels, strict=True)) if a != b}
    assert {row["row"] for row in found["worst"]} == wrong
    assert one["max_length"] == 32  # the run's own
    by_idx = [row for row in found["slices"] if row["slice"] == "idx"]
    assert sum(row["rows"] for row in by_idx) == 37
    assert len(by_idx) == 4  # a number: by quarters


def test_own_file_calibrated_and_compared(
    cluster: Any,  # noqa: ARG001
    model: Path,
    small_run: TrainConfig,
    tmp_path: Path,
) -> None:
    own = tmp_path / "model"
    shutil.copytree(model, own)
    table = pq.read_table(Path(str(small_run.data_dir)) / "mrpc/validation.parquet").to_pylist()
    names = ("not_equivalent", "equivalent")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(
        json.dumps({"a": r["sentence1"], "b": r["sentence2"], "kind": names[r["label"]],
                    "from": r["idx"] // 3})
        for r in table
    ))  # fmt: skip
    found = judge(
        own, small_run, tmp_path, validation_file=str(path), text_column="a", max_length=32,
        text_pair_column="b", label_column="kind", calibrate=True, against=str(model), group_column="from",
    )  # fmt: skip
    split = found["splits"]["validation"]
    trained = json.loads((model.parent / "outcome.json").read_text())["validation"]
    assert split["metrics"]["accuracy"] == trained["metrics"]["accuracy"]
    stored = json.loads((own / "calibration.json").read_text())
    assert stored["temperature"] == split["calibration"]["temperature"] > 0
    assert stored["rows"] == 37
    assert not (model / "calibration.json").exists()
    assert found["stored_temperature"] is None  # it was stored only now
    assert "cannot be distinguished" in split["comparison"]["verdict"]
    assert split["comparison"]["metrics"]["accuracy"]["test"].endswith("of groups")
    assert [each["kind"] for each in split["comparison"]["selections"]] == ["unknown", "none"]
    assert "nothing is known about how" in stored["selection"]
    assert split["comparison"]["metrics"]["accuracy"]["p_value"] == 1.0


def test_slice_columns_are_read_before_any_model_runs(
    small_run: TrainConfig, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trainyard.evaluation.run.ray_session", lambda _: pytest.fail("Ray started")
    )
    with pytest.raises(UserError, match=r"slice_columns kind: .*has no column 'kind'"):
        judge(model, small_run, tmp_path, slice_columns=("idx", "kind"))
    assert not list(tmp_path.iterdir())


def test_mistakes(small_run: TrainConfig, model: Path, tmp_path: Path) -> None:
    def refuse(sentence: str, **fields: Any) -> None:
        with pytest.raises(UserError, match=sentence):
            judge(fields.pop("model", model), small_run, tmp_path, **fields)

    refuse(r"has no such split; it has train, validation, test", splits=("dev",))
    refuse(r"give a model that was fine-tuned on it, or task", task="mnli")
    refuse(r"does not say which task it was fine-tuned on; give task",
           model=Path(small_run.model_name_or_path))  # fmt: skip
    refuse(r"^num_errors is -1", num_errors=-1)
    for column in ("length", "label"):
        refuse(rf"slice_columns {column}: rows are grouped by length and label already",
               slice_columns=(column,))  # fmt: skip
    refuse(r"^num_workers is 0; it must be at least 1", num_workers=0)
    refuse(r"has no such split; it has train", splits=("training",))
    refuse(r"answers not_equivalent, equivalent, but task 'rte' has the labels", task="rte")
    refuse(r"^validation_file is evaluated alone", validation_file="x.csv", splits=("test",))
    refuse(r"drop task, data_dir and splits", validation_file="x.csv", task="mrpc")
    refuse(r"^label_column describes your own data, but there is no validation", label_column="y")
    refuse(r"^text_pair_column describes your own data", text_pair_column="b")
    refuse(r"splits is validation validation; name each once", splits=("validation",) * 2)
    refuse(r"more confident on the rows that it was trained on; calibrate on validation", splits=("train",),
           calibrate=True)  # fmt: skip
    refuse(r"^max_length is 0; it must be at least 1", max_length=0)
    refuse(r"data_dir .* would not be read: the rows of task 'demo' are", task="demo")


def test_what_a_model_lies_in(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    assert describe(str(run / "model")).max_length is None
    assert max_length(describe(str(run / "model")), None) == 64  # its positions, fewer than 128
    assert max_length(describe(str(run / "model")), 32) == 32
    (run / "run.json").write_text(json.dumps({"config": {"max_length": 77}}))
    assert describe(str(run / "model")).max_length == 77
    config = json.loads((run / "model/config.json").read_text())
    (run / "model/config.json").write_text(json.dumps({**config, "trained_max_length": 20}))
    assert describe(str(run / "model")).max_length == 20  # also on the Hub, and of a sweep
    (run / "model/config.json").write_text(json.dumps(config))
    monkeypatch.chdir(run)  # a Hub id without a slash is not a file next to it
    assert _recorded_length(Path("bert-base-uncased")) is None
    for foreign in ("{}", json.dumps({"config": "mine"})):
        (run / "run.json").write_text(foreign)
        assert describe(str(run / "model")).max_length is None
    (run / "run.json").write_text("{")
    with pytest.raises(
        UserError, match=r"run.json is damaged .*move it away, and give --max-length"
    ):
        describe(str(run / "model"))


def test_a_second_model_that_does_not_fit_is_known_before_any_runs(
    small_run: TrainConfig, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "trainyard.evaluation.run.ray_session", lambda _: pytest.fail("Ray started")
    )
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / "config.json").read_text())
    config |= {"id2label": {"0": "spam", "1": "ham"}, "label2id": {"spam": 0, "ham": 1}}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"other answers spam, ham, but task 'mrpc' has the labels"):
        judge(model, small_run, tmp_path / "runs", against=str(other))
    assert not (tmp_path / "runs").exists()


def test_a_temperature_that_is_stored_is_said(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "model"
    shutil.copytree(model, own)
    assert _stored_temperature(describe(str(own))) is None
    (own / "calibration.json").write_text(json.dumps({"temperature": 1.7}))
    assert _stored_temperature(describe(str(own))) == 1.7
    split = {
        "metrics": {"f1": 0.5},
        "intervals": {"f1": [0.4, 0.6]},
        "eval_loss": 0.7,
        "rows": 3,
        "truncated_rows": 0,
    }
    found = {"splits": {"validation": split}, "score_metric": "f1", "score": 0.5, "seconds": 1.0}
    found |= {"group_column": None, "notes": []}
    for temperature, notes in ((1.7, 1), (None, 0)):
        section = _results({**found, "stored_temperature": temperature})
        said = [part.text for part in section.content if isinstance(part, Text)]
        assert sum("trainyard predict divide them by 1.7" in text for text in said) == notes


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations predict in this process."""
    monkeypatch.setattr("trainyard.evaluation.run.ray_session", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(
        "trainyard.evaluation.run.predict_on_ray",
        lambda jobs, *_: [predict_splits(*job, use_gpu=False) for job in jobs],
    )


@pytest.mark.usefixtures("here")
def test_rows_that_were_set_aside_compare_and_calibrate(
    model: Path, small_run: TrainConfig, tmp_path: Path
) -> None:
    """A trial of a sweep that set rows aside is compared on these rows, without a correction."""
    for name, share in (("set-aside", 0.4), ("all", 0.0)):
        run = tmp_path / name
        shutil.copytree(model, run / "model")
        config = dataclasses.asdict(dataclasses.replace(small_run, test_share=share))
        (run / "run.json").write_text(
            json.dumps({"config": config, "trial": {"kind": "search"}, "sweep": "s"})
        )
        (run.parent / name / "trial.json").write_text("{}")
        found = judge(run / "model", small_run, tmp_path / "runs", against=str(model))
        split = found["splits"]["validation"]
        rows = 15 if share else 37
        assert (split["comparison"]["rows"], split["calibration"]["rows"]) == (rows, rows)
        kinds = [each["kind"] for each in split["comparison"]["selections"]]
        assert kinds == (["none", "epochs"] if share else ["trials", "epochs"])


@pytest.mark.usefixtures("here")
def test_the_texts_of_a_new_file_are_hashed_by_its_tokenization_alone(
    model: Path, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Split, "texts", property(lambda _: pytest.fail("all rows are read again")))
    rows = pq.read_table(Path(str(small_run.data_dir)) / "mrpc/validation.parquet").to_pylist()
    names = ("not_equivalent", "equivalent")
    texts = [(row["sentence1"], row["sentence2"], names[row["label"]]) for row in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps(dict(zip(("a", "b", "kind"), each, strict=True))) for each in texts)
    )
    run = tmp_path / "trained"
    shutil.copytree(model, run / "model")
    config = {**dataclasses.asdict(small_run), "train_file": "gone.csv"}
    firsts, seconds, _ = zip(*texts, strict=True)
    sketch = TextSketch().with_hashes(text_hashes(list(firsts), list(seconds))).encoded()
    record = {"config": config, "text_sketches": {"train": sketch}}
    (run / "run.json").write_text(json.dumps(record))
    found = judge(
        run / "model", small_run, tmp_path / "runs", validation_file=str(path), text_column="a",
        text_pair_column="b", label_column="kind", against=str(model),
    )  # fmt: skip
    selections = found["splits"]["validation"]["comparison"]["selections"]
    assert [each["kind"] for each in selections] == ["trained", "none"]


def test_the_bar_follows_the_workers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bar(contextlib.AbstractContextManager["Bar"]):
        n = 0

        def update(self, rows: int) -> None:
            self.n += rows
            seen.append(self.n)

        def __exit__(self, *_: object) -> None:
            pass

    seen: list[int] = []
    monkeypatch.setattr(evaluation, "progress_bar", lambda *_, **__: Bar())
    counted = tmp_path / "counted"
    count = evaluation._RowCount(counted)
    with evaluation._bar(counted, 5):
        count(3)
        while 3 not in seen:
            time.sleep(0.05)
        count(2)  # within half a second of the first: not written
    assert seen[-1] == 5
    assert not counted.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_s_mistake_ends_the_workers_that_wait_for_it(
    workers: int, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sentence is the job's, whether it was returned or raised."""

    class Trainer:
        def __init__(self, _: Any, work: Any, *__: Any, max_failures: int, **___: Any) -> None:
            self.work = work
            assert max_failures == 0, "Ray retries any error"

        def fit(self) -> Any:
            attempts.append(1)
            try:
                found = self.work()
            except UserError as error:
                assert workers == 2
                raise WorkerGroupError("a worker failed", {1: error}) from error
            assert workers == 1
            return SimpleNamespace(return_value=found)

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("the file of the weights is damaged")

    attempts: list[int] = []
    place = "trainyard.evaluation.run"
    monkeypatch.setattr(f"{place}.build_trainer", Trainer)
    monkeypatch.setattr(f"{place}.worker_resources", lambda _: {"CPU": 1.0})
    monkeypatch.setattr(f"{place}.claim_processor", lambda _: None)
    monkeypatch.setattr(f"{place}.predict_splits", refuse)
    job: Any = ("model", SimpleNamespace(folders={}), None)
    config = dataclasses.replace(small_run, num_workers=workers)
    with pytest.raises(UserError, match="the file of the weights is damaged"):
        predict_on_ray([job], config, tmp_path)
    assert len(attempts) == 1


WORDS = "1 worker(s) were killed due to the node running low on memory. It was 1GB used / 2GB limit"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            WorkerGroupError("lost", {0: RuntimeError("Connection closed by peer")}),
            "worker 0: RuntimeError: Connection closed by peer",
        ),
        (
            OutOfMemoryError(WORDS),  # of the controller
            "a process was ended by Ray because the memory of its node was full (1 of 2 GB used); run "
            "fewer workers on a node, use nodes with more memory, or lower "
            "--per-device-eval-batch-size or --max-length",
        ),
    ],
)
@pytest.mark.parametrize("losses", [1, 2])
def test_lost_workers_are_started_once_more(
    losses: int,
    error: Exception,
    reason: str,
    small_run: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts: list[int] = []

    class Trainer:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def fit(self) -> Any:
            attempts.append(1)
            if len(attempts) <= losses:
                raise error
            return SimpleNamespace(return_value=[])

    place = "trainyard.evaluation.run"
    monkeypatch.setattr(f"{place}.build_trainer", Trainer)
    monkeypatch.setattr(f"{place}.worker_resources", lambda _: {"CPU": 1.0})
    monkeypatch.setattr(f"{place}.release_orphans", lambda: None)  # there is no Ray here
    if losses == 1:
        assert predict_on_ray([], small_run, tmp_path) == []
    else:
        with pytest.raises(UserError) as raised:
            predict_on_ray([], small_run, tmp_path)
        shown = f"evaluation failed, {reason}; --verbose shows the worker's log"
        assert str(raised.value) == shown
    assert len(attempts) == 2
