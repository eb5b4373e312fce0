import pickle
import subprocess
import sys

import pytest

from trainyard.errors import UserError
from trainyard.metrics import METRICS
from trainyard.tasks import GLUE_REVISION, TASKS, ProblemType, Task, get_task, own_task

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")


def test_tasks_are_the_ten_of_glue_and_the_demo() -> None:
    assert tuple(TASKS) == (*GLUE, "demo")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_row_is_well_formed(task: Task) -> None:
    assert get_task(task.name) is task
    assert 1 <= len(task.text_columns) <= 2
    assert task.label_column not in task.text_columns
    assert len(set(task.labels)) == len(task.labels) != 1
    assert (task.problem_type == "regression") == (task.labels == ())
    assert task.num_labels == max(1, len(task.labels))
    kind = "values" if task.problem_type == "regression" else "labels"
    assert all(kind in METRICS[name].inputs for name in task.metrics)
    assert task.score in task.metrics
    assert METRICS[task.score].higher_is_better
    assert "f1" not in task.metrics or task.num_labels == 2
    splits = (*task.evaluation_splits, *task.test_splits)
    assert len(set(splits)) == len(splits)
    assert task.train_split not in splits


@pytest.mark.parametrize("name", GLUE)
def test_glue_row_is_pinned_on_the_hub(name: str) -> None:
    task = TASKS[name]
    assert (task.hub_path, task.hub_config) == ("nyu-mll/glue", name)
    assert task.hub_revision == GLUE_REVISION == "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
    train = () if task.train_split is None else (task.train_split,)
    assert tuple(task.rows) == (*train, *task.evaluation_splits, *task.test_splits)


def test_glue_holds_as_many_rows_as_its_card_says() -> None:
    # Sums over tasks of the counts in the card of nyu-mll/glue, added up by hand.
    assert sum(TASKS[name].rows.get("train", 0) for name in GLUE) == 949_733
    assert sum(TASKS[name].rows.get("validation", 0) for name in GLUE) == 50_064
    assert TASKS["mnli"].rows["validation_matched"] == 9_815
    assert TASKS["mnli"].rows["validation_mismatched"] == 9_832
    assert sum(TASKS[name].rows.get("test", 0) for name in GLUE) == 406_666


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("cola", "matthews_correlation"),
        ("stsb", "spearmanr"),
        ("mrpc", "f1"),
        ("qqp", "f1"),
        ("ax", "matthews_correlation"),
        *((name, "accuracy") for name in ("sst2", "mnli", "qnli", "rte", "wnli", "demo")),
    ],
)
def test_headline(name: str, score: str) -> None:
    assert TASKS[name].score == score


def test_mnli_is_judged_on_two_splits_and_shares_its_labels_with_ax() -> None:
    mnli, ax = TASKS["mnli"], TASKS["ax"]
    assert mnli.evaluation_splits == ("validation_matched", "validation_mismatched")
    assert mnli.labels == ax.labels == ("entailment", "neutral", "contradiction")
    assert (ax.train_split, ax.evaluation_splits, ax.test_splits) == (None, (), ("test",))


def test_wnli_counts_its_labels_the_other_way_round_than_rte() -> None:
    assert TASKS["wnli"].labels == TASKS["rte"].labels[::-1] == ("not_entailment", "entailment")


def test_demo_needs_no_hub() -> None:
    demo = TASKS["demo"]
    assert (demo.hub_path, demo.hub_config, demo.hub_revision) == (None, None, None)


def test_task_can_travel_and_be_a_key() -> None:
    task = TASKS["mnli"]
    assert pickle.loads(pickle.dumps(task)) == task
    assert len({task, TASKS["ax"], task}) == 2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sst", "unknown task 'sst'; did you mean 'sst2'? Known tasks: cola, sst2, mrpc, "),
        ("CoLA", "unknown task 'CoLA'; did you mean 'cola'? Known tasks: cola, "),
        ("STS-B", "unknown task 'STS-B'; did you mean 'stsb'? Known tasks: cola, "),
        ("imagenet", "unknown task 'imagenet'; known tasks: cola, sst2, mrpc, stsb, qqp, mnli, "),
    ],
)
def test_unknown_task(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        get_task(name)
    assert str(error.value).startswith(sentence)
    assert str(error.value).endswith("ax, demo")


@pytest.mark.parametrize(
    ("problem_type", "labels", "metrics", "score"),
    [
        (
            "single_label_classification",
            ("no", "yes"),
            ("accuracy", "f1_macro", "matthews_correlation", "f1"),
            "f1_macro",
        ),
        (
            "single_label_classification",
            ("a", "b", "c"),
            ("accuracy", "f1_macro", "matthews_correlation"),
            "f1_macro",
        ),
        ("regression", (), ("pearson", "spearmanr", "rmse"), "spearmanr"),
        (
            "multi_label_classification",
            ("a", "b"),
            ("f1_micro", "f1_macro", "accuracy"),
            "f1_micro",
        ),
    ],
)
def test_own_task_has_the_usual_metrics(
    problem_type: ProblemType, labels: tuple[str, ...], metrics: tuple[str, ...], score: str
) -> None:
    task = own_task(
        text_columns=["body"], label_column="mood", labels=labels, problem_type=problem_type
    )
    assert (task.metrics, task.score) == (metrics, score)
    assert METRICS[task.score].higher_is_better
    kind = {"regression": "values", "multi_label_classification": "multi_label"}
    assert all(kind.get(problem_type, "labels") in METRICS[name].inputs for name in metrics)
    assert (task.text_columns, task.label_column, task.labels) == (("body",), "mood", labels)
    assert task.num_labels == max(1, len(labels))
    assert (task.train_split, task.evaluation_splits) == ("train", ("validation",))
    assert task.hub_path is None


@pytest.mark.parametrize(
    ("problem_type", "labels", "sentence"),
    [
        (
            "single_label_classification",
            ["spam"],
            "1 different labels were found, but a classification needs at least 2; "
            "check the column 'mood'",
        ),
        (
            "multi_label_classification",
            [],
            "no labels were found, but a multi-label classification needs at least 1; "
            "check the column 'mood'",
        ),
        (
            "regression",
            ["a", "b"],
            "a regression predicts a number, but 2 labels were given (a, b); "
            "leave them out, or classify",
        ),
    ],
)
def test_own_task_refuses_labels_that_do_not_fit(
    problem_type: ProblemType, labels: list[str], sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        own_task(text_columns=["t"], label_column="mood", labels=labels, problem_type=problem_type)
    assert str(error.value) == sentence


@pytest.mark.parametrize("module", ["tasks", "metrics", "stats"])
def test_import_is_light(module: str) -> None:
    heavy = {"torch", "ray", "transformers", "datasets", "evaluate", "sklearn", "scipy"}
    program = f"import sys, trainyard.{module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    loaded = set(done.stdout.split())
    assert f"trainyard.{module}" in loaded
    assert not loaded & heavy
