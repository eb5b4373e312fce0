"""Rows that chose a model do not call it better; rows that depend on each other count as groups."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_comparisons import best_of, grouped

from trainyard.config import TrainConfig
from trainyard.data.splits import Split, find_splits, is_test, selection_and_test
from trainyard.data.text_sketch import TextSketch
from trainyard.errors import UserError
from trainyard.evaluation.comparison import WITHHELD, Selection, clean_rows, compare, selection_of
from trainyard.evaluation.config import EvalConfig
from trainyard.evaluation.details import calibration
from trainyard.evaluation.inputs import EvaluatedModel, extra_columns, group_of_rows
from trainyard.evaluation.known_texts import known_texts
from trainyard.stats import bootstrap_interval, metric_interval
from trainyard.storage.folder import RunFolder
from trainyard.storage.manifest import file_digest
from trainyard.tasks import get_task

NONE = Selection(kind="none", sentence="other rows chose it")
NO_CACHE = Path("no cache")
TRIALS = Selection(kind="trials", sentence="A was chosen among 24 trials", candidates=None)


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """A data folder with a task of two splits."""
    (tmp_path / "glue/rte").mkdir(parents=True)
    for name, rows in (("train", 20), ("validation", 40)):
        columns = {"sentence1": [f"{name} {n}" for n in range(rows)], "sentence2": ["x"] * rows}
        table = pa.table({**columns, "label": [n % 2 for n in range(rows)]})
        pq.write_table(table, tmp_path / f"glue/rte/{name}.parquet")
    return tmp_path / "glue"


def write_run(
    path: Path, config: TrainConfig, evaluations: int = 3, **fields: Any
) -> EvaluatedModel:
    """The folder of a run, as `train` leaves it."""
    (path / "model").mkdir(parents=True)
    sources = {split.name: split.digest for split in find_splits(config).splits}
    record = {"config": vars(config), "data_sources": sources, **fields}
    (path / "run.json").write_text(json.dumps(record))
    lines = [{"step": n, "split": "validation", "metrics": {}} for n in range(evaluations)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return model_in(path)


def model_in(path: Path) -> EvaluatedModel:
    return EvaluatedModel(
        name="A", path=str(path / "model"), task="rte", labels=("a", "b"), problem_type=None,
        max_length=None,
    )  # fmt: skip


def kinds(
    model: EvaluatedModel, glue: Path, *names: str, **flags: Any
) -> list[tuple[str, int | None]]:
    """What is found out about splits of the task."""
    config = TrainConfig(task="rte", data_dir=str(glue))
    flags = {"data_dir": str(glue), "task": "rte"} | flags
    evaluation = EvalConfig(model_name_or_path="A", **flags)
    splits = find_splits(config, names or ("train", "validation")).splits
    found = [selection_of(model, evaluation, "rte", split, NO_CACHE) for split in splits]
    return [(each.kind, each.candidates) for each in found]


def test_a_run_was_trained_on_one_split_and_chosen_by_the_other(tmp_path: Path, glue: Path) -> None:
    model = write_run(tmp_path / "run", TrainConfig(task="rte", data_dir=str(glue)))
    assert kinds(model, glue) == [("trained", None), ("epochs", 3)]
    other = pq.read_table(glue / "rte/validation.parquet").slice(1)
    pq.write_table(other, glue / "rte/validation.parquet")
    assert kinds(model, glue, "validation") == [("none", 1)]  # a file of other rows


def test_a_model_of_a_sweep_was_chosen_among_its_trials(tmp_path: Path, glue: Path) -> None:
    sweep, config = tmp_path / "sweep", TrainConfig(task="rte", data_dir=str(glue))
    for number in range(4):
        trial = {"kind": "search", "name": f"trial-000{number}"}
        model = write_run(sweep / f"trials/trial-000{number}", config, trial=trial, sweep="s")
        (sweep / f"trials/trial-000{number}/trial.json").write_text("{}")
    again = {"kind": "confirmation", "name": "default-seed-0"}
    default = write_run(sweep / "confirmation/default-seed-0", config, trial=again, sweep="s")
    assert kinds(model, glue, "validation") == [("trials", None)]
    assert kinds(default, glue, "validation") == [("epochs", 3)]
    (sweep / "model").mkdir()
    for best, expected in (("trial-0002", ("trials", None)), ("default", ("epochs", 3))):
        record = {"kind": "sweep", "identity": "", "config": {}, "data_fingerprint": {}}
        text = json.dumps({**record, "result": {"best_trial": best}})
        (sweep / "sweep.json").write_text(text)
        assert kinds(model_in(sweep), glue, "validation") == [expected]


def test_rows_that_were_set_aside_judge_without_correction(tmp_path: Path, glue: Path) -> None:
    config = TrainConfig(task="rte", data_dir=str(glue), test_share=0.5)
    model = write_run(tmp_path / "run", config, trial={"kind": "search"}, sweep="s")
    assert kinds(model, glue, "validation") == [("trials", None)]
    evaluation = EvalConfig(model_name_or_path="A", data_dir=str(glue), task="rte")
    (split,) = find_splits(TrainConfig(task="rte", data_dir=str(glue)), ["validation"]).splits
    labels = np.arange(40) % 2
    found = selection_of(model, evaluation, "rte", split, NO_CACHE)
    rows, (on_rows, other) = clean_rows([found, NONE], labels)
    assert rows is not None
    assert rows.tolist() == selection_and_test(labels, 0.5)[1].tolist()
    assert (on_rows.kind, on_rows.candidates, other) == ("none", 1, NONE)
    assert clean_rows([NONE, TRIALS], labels) == (None, [NONE, TRIALS])


def test_own_files_are_recognized_by_their_content(tmp_path: Path, glue: Path) -> None:
    for name in ("train", "held", "test", "other"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name} 1,a\n{name} 2,b\n")
    flags = {f"{flag}_file": str(tmp_path / f"{name}.csv") for flag, name in
             (("train", "train"), ("validation", "held"), ("test", "test"))}  # fmt: skip
    model = write_run(tmp_path / "run", TrainConfig(**flags))  # type: ignore[arg-type]

    def kind(name: str) -> str:
        own = {"data_dir": None, "task": None, "validation_file": str(tmp_path / f"{name}.csv")}
        return kinds(model, glue, "validation", **own)[0][0]

    expected = {"train": "trained", "held": "epochs", "test": "none", "other": "none"}
    assert {name: kind(name) for name in expected} == expected
    digests = {flag: file_digest(path) for flag, path in flags.items()}
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "held.csv").rename(tmp_path / "moved.csv")
    assert kind("moved") == "unknown"  # an older run does not tell, once its file has moved
    assert kind("test") == "none"
    assert kind("*[tr]") == "unknown"  # test.csv and other.csv
    (tmp_path / "run/run.json").write_text(json.dumps({**record, "data_files": digests}))
    assert kind("moved") == "epochs"
    assert kinds(model, glue, "validation") == [("none", 1)]  # a task's rows are others
    several = {**digests, "validation_file": f"0123 {digests['validation_file']}"}
    (tmp_path / "run/run.json").write_text(json.dumps({**record, "data_files": several}))
    assert kind("moved") == "epochs"  # one of several files
    assert kind("[mo]*") == "epochs"  # other.csv and moved.csv
    assert kind("t*") == "trained"  # train.csv and test.csv
    hub = {**record["config"], "train_file": None, "dataset_name": "imdb"}
    (tmp_path / "run/run.json").write_text(json.dumps({**record, "config": hub}))
    assert kind("moved") == "unknown"  # its rows may be those of the data set


def test_rows_are_set_aside_only_in_the_files_of_the_run(tmp_path: Path) -> None:
    for name in ("train", "held-1", "held-2"):
        lines = "".join(f"{name} {n},{'ab'[n % 2]}\n" for n in range(4))
        (tmp_path / f"{name}.csv").write_text("text,label\n" + lines)
    held = str(tmp_path / "held-*.csv")
    config = TrainConfig(
        train_file=str(tmp_path / "train.csv"), validation_file=held, test_share=0.5
    )
    model = write_run(tmp_path / "run", config)
    (split,) = (each for each in find_splits(config).splits if each.name == "validation")

    def found(files: str) -> tuple[str, float]:
        evaluation = EvalConfig(model_name_or_path="A", validation_file=files)
        selection = selection_of(model, evaluation, "own", split, NO_CACHE)
        return selection.kind, selection.test_share

    first, second = (str(tmp_path / f"held-{n}.csv") for n in (1, 2))
    assert found(held) == found(f"{first},{second}") == ("epochs", 0.5)
    assert found(first) == found(f"{second},{first}") == ("epochs", 0.0)


def test_nothing_is_known_of_a_model_without_a_run(tmp_path: Path, glue: Path) -> None:
    (tmp_path / "model").mkdir()
    assert kinds(model_in(tmp_path), glue, "validation") == [("unknown", 1)]
    hub = EvaluatedModel(name="A", path="org/model", task="rte", labels=("a", "b"), problem_type=None,
                 max_length=None)  # fmt: skip
    assert kinds(hub, glue, "validation") == [("unknown", 1)]


LABELS = np.arange(400) % 2


def judged(wins: int, *selections: Selection) -> dict[str, Any]:
    """The first model is right on 300 rows and some more, the second on 300."""
    first, second = (
        np.eye(2)[np.where(np.arange(400) < right, LABELS, 1 - LABELS)]
        for right in (300 + wins, 300)
    )
    return compare(
        get_task("rte"), first, second, LABELS, names=("A", "B"), seed=0, selections=selections
    )


def test_the_best_of_a_runs_evaluations_must_win_by_more() -> None:
    plain = judged(8, NONE, NONE)
    assert plain["metrics"]["accuracy"]["verdict"] == "better"
    chosen = judged(8, Selection(kind="epochs", sentence="", candidates=12), NONE)
    found = chosen["metrics"]["accuracy"]
    assert found["verdict"] == "not distinguishable"
    assert found["p_value"] == plain["metrics"]["accuracy"]["p_value"]  # its meaning stays
    assert found["corrected_p_value"] == pytest.approx(12 * found["p_value"])
    assert found["corrected_interval"][0] < found["interval"][0]
    assert "corrected for the best of 12 and of 1" in chosen["verdict"]
    against = judged(8, NONE, Selection(kind="epochs", sentence="", candidates=12))
    assert against["metrics"]["accuracy"]["verdict"] == "better"  # these rows favor the other one
    assert judged(40, Selection(kind="epochs", sentence="", candidates=12), NONE)[
        "verdict"
    ].startswith("A is better than B")


def test_a_correlation_of_the_best_must_win_by_more_too() -> None:
    """Only its interval decides: there is no p value."""
    rng = np.random.default_rng(0)
    truth, first, second = rng.normal(2.5, 1, 200), rng.normal(0, 1, 200), rng.normal(0, 1, 200)
    ours, theirs = ((truth + noise)[:, None] for noise in (0.68 * first, second))

    def verdicts(selection: Selection) -> set[str]:
        found = compare(
            get_task("stsb"), ours, theirs, truth,
            names=("A", "B"), seed=0, selections=(selection, NONE),
        )  # fmt: skip
        return {metric["verdict"] for metric in found["metrics"].values()}

    assert verdicts(NONE) == {"better"}
    chosen = Selection(kind="epochs", sentence="", candidates=12)
    assert verdicts(chosen) == {"not distinguishable"}


def test_the_best_of_trials_is_not_called_better() -> None:
    found = judged(40, TRIALS, NONE)
    assert found["metrics"]["accuracy"]["verdict"] == WITHHELD
    assert found["verdict"].startswith(
        "no verdict on A and B: A was chosen among 24 trials, so these"
    )
    assert judged(-40, TRIALS, NONE)["verdict"].startswith("A is worse than B")
    assert judged(-40, NONE, TRIALS)["metrics"]["accuracy"]["verdict"] == WITHHELD
    assert "cannot be distinguished" in judged(1, TRIALS, NONE)["verdict"]
    unknown = judged(40, Selection(kind="unknown", sentence="nothing is known of A"), NONE)
    assert unknown["verdict"].endswith("nothing is known of A")


def test_calibration_on_rows_that_chose_the_model() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    right = np.where(rng.random(500) < 0.8, labels, 1 - labels)

    def verdict(confidence: float, selection: Selection | None) -> str | None:
        logits = np.log([1 - confidence, confidence])[np.eye(2, dtype=int)[right]]
        found = calibration(
            "single_label_classification", logits, labels, seed=0, selection=selection
        )
        said: str | None = found["verdict"]
        return said

    for selection in (None, NONE, TRIALS):
        assert verdict(0.95, selection) == "overconfident"
    assert (verdict(0.6, None), verdict(0.6, TRIALS)) == ("underconfident", None)
    epochs = Selection(kind="epochs", sentence="", candidates=20)
    edge = next(c for c in np.arange(0.8, 0.5, -0.002) if verdict(c, None) == "underconfident")
    assert verdict(edge, epochs) == "not distinguishable from calibrated"
    assert verdict(0.6, epochs) == "underconfident"


def test_a_false_better_is_as_rare_for_the_best_of_many() -> None:
    assert best_of(12, 300, 0.0, "rte", 200, corrected=False)["better"][1] > 0.05
    assert best_of(12, 300, 0.0, "rte", 200, corrected=True)["better"][1] <= 0.025


def test_rows_of_a_group_count_together() -> None:
    assert grouped(50, 5, 150, by_group=False)["covered"][2] < 0.9
    found = grouped(50, 5, 150, by_group=True)
    assert found["covered"][2] >= 0.93
    assert found["wrong"][1] <= 0.05
    labels = np.arange(60) % 2
    right = np.where(np.arange(60) % 5 > 0, labels, 1 - labels)
    every = metric_interval("f1", right, labels, groups=np.arange(60))
    assert every == pytest.approx(bootstrap_interval("f1", right, labels), abs=0.02)
    with pytest.raises(UserError, match="all rows are of one group"):
        metric_interval("f1", right, labels, groups=np.zeros(60))


def test_the_group_column_is_read_from_the_file(glue: Path) -> None:
    config = EvalConfig(
        model_name_or_path="A", task="rte", data_dir=str(glue), group_column="sentence2"
    )
    splits = find_splits(TrainConfig(task="rte", data_dir=str(glue)), ["validation"])
    groups = group_of_rows(config, splits, "validation")
    assert groups is not None
    assert groups.tolist() == ["x"] * 40
    assert config.resolved_run_name("rte") != EvalConfig(
        model_name_or_path="A", task="rte", data_dir=str(glue)
    ).resolved_run_name("rte")
    wrong = EvalConfig(model_name_or_path="A", task="rte", data_dir=str(glue), group_column="no")
    with pytest.raises(
        UserError, match=r"--group-column no: .*has no column 'no'.* --group-column$"
    ):
        group_of_rows(wrong, splits, "validation")


def sketches(config: TrainConfig) -> dict[str, Any]:
    """The field of run.json with the texts that train and choose the model."""
    splits = (split for split in find_splits(config).splits if not is_test(split.name))
    return {"text_sketches": {split.name: split.texts.encoded() for split in splits}}


def write_rows(path: Path, texts: Sequence[str], **more: list[str]) -> str:
    rows = pa.table({**more, "label": ["ab"[len(text) % 2] for text in texts], "text": texts})
    if path.suffix == ".parquet":
        pq.write_table(rows, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    else:
        lines = [rows.column_names, *(list(row.values()) for row in rows.to_pylist())]
        path.write_text(
            "".join(("\t" if path.suffix == ".tsv" else ",").join(line) + "\n" for line in lines)
        )
    return str(path)


def texts_named(name: str, number: int) -> list[str]:
    return [f"{name} {'x' * (n % 2)} row {n}" for n in range(number)]


def found_in(model: EvaluatedModel, file: str) -> Selection:
    """What is found out about the rows of a file, which the run has not read."""
    evaluation = EvalConfig(model_name_or_path="A", validation_file=file)
    read = TrainConfig(train_file=file, validation_file=file)
    (split,) = (split for split in find_splits(read).splits if split.name == "validation")
    return selection_of(model, evaluation, "own", split, NO_CACHE)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(4, 60), seed=st.integers(0, 3), dropped=st.integers(0, 1),
    kind=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]), more=st.booleans(),
)  # fmt: skip
def test_a_file_that_was_saved_again_is_recognized(
    rows: int, seed: int, dropped: int, kind: str, more: bool
) -> None:
    """In any order and format, with another column, and without a row."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts = {name: texts_named(name, rows) for name in ("train", "held", "other")}
        files = {name: write_rows(folder / f"{name}.csv", parts[name]) for name in parts}
        config = TrainConfig(train_file=files["train"], validation_file=files["held"])
        digests = {field: file_digest(vars(config)[field])
                   for field in ("train_file", "validation_file")}  # fmt: skip
        fields: dict[str, Any] = {**sketches(config), "data_files": digests}
        run = write_run(folder / "run", config, **fields)
        trial: dict[str, Any] = {"trial": {"kind": "search", "name": "0"}, "sweep": "s"}
        chosen = write_run(folder / "sweep/trials/0", config, **fields, **trial)
        older = write_run(folder / "older", config, data_files=digests)
        rng = np.random.default_rng(seed)
        again = {}
        for name, texts in parts.items():
            kept = [texts[n].upper() for n in rng.permutation(rows)[dropped:]]
            column = {"id": [str(n) for n in range(len(kept))]} if more else {}
            again[name] = write_rows(folder / f"{name}-again.{kind}", kept, **column)
        expected = {"train": ("trained", None), "held": ("epochs", 3), "other": ("none", 1)}
        for files_of_a_name in (files, again):
            for name, file in files_of_a_name.items():
                found = found_in(run, file)
                assert (found.kind, found.candidates) == expected[name]
        assert found_in(chosen, again["held"]).kind == "trials"
        assert found_in(older, again["held"]).kind == "none"  # as before
        sentence = found_in(run, again["held"]).sentence
    number = rows - dropped
    assert sentence.endswith(f", recognized by {number} of the {number} texts compared")


@pytest.mark.parametrize(("shared", "kind"), [(0, "none"), (1, "unknown"), (50, "unknown"),
                                              (51, "used"), (100, "used")])  # fmt: skip
@pytest.mark.parametrize(("name", "used"), [("train", "trained"), ("held", "epochs")])
def test_rows_that_were_used_in_part_are_named(
    tmp_path: Path, shared: int, kind: str, name: str, used: str
) -> None:
    files = {each: write_rows(tmp_path / f"{each}.csv", texts_named(each, 100))
             for each in ("train", "held")}  # fmt: skip
    config = TrainConfig(train_file=files["train"], validation_file=files["held"])
    model = write_run(tmp_path / "run", config, **sketches(config))
    mixed = texts_named(name, 100)[:shared] + texts_named("other", 100)[shared:]
    found = found_in(model, write_rows(tmp_path / "mixed.csv", mixed))
    assert found.kind == (used if kind == "used" else kind)
    if kind == "unknown":
        assert found.candidates == 1
        assert found.sentence == (
            f"about {shared:.1f} % of the texts of validation ({shared} of 100 compared) are also among "
            "those that trained or chose A, which looks better on them than on new ones; unless such "
            "texts are common, leave them out, or compare on other rows"
        )


def test_a_file_from_which_rows_were_set_aside_is_recognized_by_those_that_chose(
    tmp_path: Path,
) -> None:
    """Their positions are known in the run's file only."""
    files = {name: write_rows(tmp_path / f"{name}.csv", texts_named(name, 100))
             for name in ("train", "held")}  # fmt: skip
    config = TrainConfig(train_file=files["train"], validation_file=files["held"], test_share=0.5)
    trial: dict[str, Any] = {"trial": {"kind": "search", "name": "0"}, "sweep": "s"}
    model = write_run(tmp_path / "trials/0", config, **sketches(config), **trial)
    whole = found_in(model, write_rows(tmp_path / "again.csv", texts_named("held", 100)[::-1]))
    assert (whole.kind, whole.candidates, whole.test_share) == ("trials", None, 0.0)
    apart = next(split for split in find_splits(config).splits if is_test(split.name))
    texts = [text for batch in apart.batches() for text in batch["text"].to_pylist()]
    assert len(texts) == 50
    assert found_in(model, write_rows(tmp_path / "apart.csv", texts)).kind == "none"


def test_a_file_of_a_task_is_recognized_too(tmp_path: Path, glue: Path) -> None:
    config = TrainConfig(task="rte", data_dir=str(glue))
    model = write_run(tmp_path / "run", config, **sketches(config))
    part = replace(config, test_share=0.5)
    parted = write_run(tmp_path / "parted", part, **sketches(part))
    rows = pq.read_table(glue / "rte/validation.parquet")
    pq.write_table(rows.take(list(range(39, 0, -1))), glue / "rte/validation.parquet")
    assert kinds(model, glue, "validation") == [("epochs", 3)]
    evaluation = EvalConfig(model_name_or_path="A", data_dir=str(glue), task="rte")
    (split,) = find_splits(config, ["validation"]).splits
    assert (
        selection_of(parted, evaluation, "rte", split, NO_CACHE).test_share == 0.0
    )  # other positions
    names = ("train", "validation_matched", "validation_mismatched")
    first, second = (np.arange(20, dtype=np.uint64) + n for n in (0, 20))
    parts = [
        TextSketch(np.arange(100, 120, dtype=np.uint64)),
        TextSketch(first),
        TextSketch(second),
    ]
    both = Split("validation", "", lambda: iter(()))
    vars(both)["texts"] = TextSketch(np.concatenate([first, second]))
    encoded = {name: part.encoded() for name, part in zip(names, parts, strict=True)}
    record = {"config": {}, "text_sketches": encoded}
    found = known_texts(RunFolder(tmp_path), record, both, tmp_path)
    assert found is not None
    assert found.role == "selection"
    assert found.splits == set(names[1:])


def test_the_texts_tell_where_files_cannot(tmp_path: Path) -> None:
    """The files of a data set of the Hub have other digests."""
    files = {name: write_rows(tmp_path / f"{name}.csv", texts_named(name, 40))
             for name in ("train", "held", "other")}  # fmt: skip
    config = TrainConfig(train_file=files["train"], validation_file=files["held"])
    hub = replace(config, train_file=None, validation_file=None, dataset_name="imdb")
    model = write_run(tmp_path / "run", config, **sketches(config))
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({**record, "config": vars(hub)}))
    kinds = {name: found_in(model, file).kind for name, file in files.items()}
    assert kinds == {"train": "trained", "held": "epochs", "other": "none"}
    large = TextSketch(np.arange(1, 1001, dtype=np.uint64)).encoded()  # of many millions of texts
    record["text_sketches"]["train"] = large
    (tmp_path / "run/run.json").write_text(json.dumps({**record, "config": vars(hub)}))
    assert found_in(model, files["other"]).kind == "unknown"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    assert found_in(model, files["other"]).kind == "none"  # by its digest
    record["text_sketches"]["train"] = "*"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run.json is damaged"):
        found_in(model, files["other"])


def test_the_texts_of_the_test_file_do_not_overrule_its_digest(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "train.csv", texts_named("train", 40))
    test = write_rows(tmp_path / "test.csv", texts_named("train", 40)[::-1])
    config = TrainConfig(train_file=file, test_file=test)
    model = write_run(tmp_path / "run", config, **sketches(config))
    found = found_in(model, test)
    assert found.kind == "unknown"
    again = write_rows(tmp_path / "a.jsonl", texts_named("train", 40))
    assert found_in(model, again).kind == "trained"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_empty_cell_groups_rows_like_any_other_value(suffix: str, tmp_path: Path) -> None:
    cells = ["a", "", "1.0", " a ", "[x, y]"]
    nulls = suffix != ".csv"
    rows = [
        {"text": "ba", "label": "x", "source": cell or None if nulls else cell} for cell in cells
    ]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".csv":
        quoted = (f'ba,x,"{row["source"]}"' for row in rows)
        path.write_text("\n".join(["text,label,source", *quoted]))
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    config = EvalConfig(
        model_name_or_path="A", validation_file=str(path), slice_columns=("source",),
        group_column="source",
    )  # fmt: skip
    splits = find_splits(TrainConfig(task="demo"))
    expected = ["a", "(empty)", "1", "a", "[x, y]"]
    assert extra_columns(config, splits, "validation") == {"source": expected}
    groups = group_of_rows(config, splits, "validation")
    assert groups is not None
    assert groups.tolist() == expected
