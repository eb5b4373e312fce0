"""Loss of the evaluation rows: its value, and its way into records, history, terminal and pages."""

import dataclasses
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.ranks import Attempt, run_ranks
from support.runs_locally import run_locally
from support.tiny import read_lines, write_task
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from trainyard.config import TrainConfig
from trainyard.data.splits import find_splits
from trainyard.data.tokenize import prepare
from trainyard.evaluation.scoring import mean_loss
from trainyard.models.build import build_tokenizer
from trainyard.report.dashboard.records import Run
from trainyard.report.dashboard.run_page import loss_rows
from trainyard.report.dashboard.server import Dashboard
from trainyard.storage.folder import open_run
from trainyard.storage.records import Files
from trainyard.training.driver.progress_bar import evaluation_words
from trainyard.training.driver.result import FitResult
from trainyard.training.outcome import TrainState


def loss_of_model(checkpoint: Path, config: TrainConfig) -> float:
    """The loss that transformers computes for all validation rows with the weights of a checkpoint."""
    cache = Path(config.storage_path) / ".cache"
    table = prepare(find_splits(config), build_tokenizer(config), config, cache).table("validation")
    rows = table.gather(np.arange(len(table)), int(table.lengths.max()))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        loss = model(**{name: torch.from_numpy(array) for name, array in rows.items()}).loss
    return float(loss)


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_an_evaluation_records_the_plain_loss_of_the_model(
    task: str, small_run: TrainConfig, tmp_path: Path
) -> None:
    """Class weights and label smoothing are of training only. The loss chooses no checkpoint."""
    config = dataclasses.replace(
        small_run, task=task, data_dir=str(write_task(tmp_path / "glue", task)), ledger=False,
        storage_path=str(tmp_path), run_name="run",
    )  # fmt: skip
    if task == "mrpc":
        config = dataclasses.replace(
            config, class_weights={"equivalent": 5.0}, label_smoothing_factor=0.2
        )
    outcome, folder = run_locally(config)
    lines = [line for line in folder.metrics() if "split" in line]
    assert [line["step"] for line in lines] == [6, 12, 18]
    metrics = [*find_splits(config).task.metrics]
    assert all([*line["metrics"]] == [*line["intervals"]] == metrics for line in lines)
    for line in lines[1:]:  # the last two checkpoints are kept
        expected = loss_of_model(folder.checkpoints / f"step-{line['step']:08d}", config)
        assert line["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert "eval_loss" not in {key for line in folder.metrics() if "loss" in line for key in line}
    assert folder.progress()["eval_loss"] == outcome.state.eval_loss == lines[-1]["eval_loss"]

    result = FitResult(
        run="run", task=task, score=0.0, metrics={}, intervals={}, model=str(folder.model),
        seconds=0.0, best_step=18, steps=18, train_samples_per_second=None, padding_efficiency=1.0,
        truncated_rows={},
    )  # fmt: skip
    history = result.history
    assert history["validation_loss"].dropna().to_dict() == {
        line["step"]: line["eval_loss"] for line in lines
    }
    assert history["loss"].notna().all()


def test_processes_do_not_change_a_bit_of_the_loss(small_run: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(
        small_run, storage_path=str(tmp_path), run_name="one", max_steps=2, ledger=False
    )
    _, one = run_locally(config)
    pair = dataclasses.replace(config, run_name="two", num_workers=2)
    run_ranks(2, [Attempt(pair)], tmp_path / "pair")
    losses = [
        [line["eval_loss"] for line in folder.metrics() if "split" in line]
        for folder in (one, open_run(str(tmp_path), "two"))
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 1


def test_the_page_of_a_run_draws_the_loss_that_training_wrote(
    small_run: TrainConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(small_run, storage_path=str(tmp_path), run_name="run")
    outcome, folder = run_locally(config)
    folder.update(name="run", status=outcome.status, config=dataclasses.asdict(config))
    run = Run(Files(), folder.path, "run")
    kinds = [row["rows"] for row in loss_rows(run)]
    assert (kinds.count("training"), kinds.count("validation")) == (18, 3)
    written = [line["eval_loss"] for line in folder.metrics() if "split" in line]
    assert [row["loss"] for row in loss_rows(run) if row["rows"] == "validation"] == written
    page = str(Dashboard(tmp_path).page("run", site=None))
    assert "Training and validation loss" in page
    assert re.search(r"Training: from [\d.]+ to [\d.]+\. Validation: from [\d.]+ to [\d.]+\.", page)
    assert "loss (validation)" not in page  # not among the metrics
    assert "Validation loss" in str(Dashboard(tmp_path).comparison(["run"], site="/"))


def test_runs_of_older_versions_have_no_loss(tmp_path: Path) -> None:
    line: dict[str, Any] = {"step": 2, "split": "validation_matched", "metrics": {"accuracy": 0.5}}
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, lines in ((old, [line]), (new, [line | {"eval_loss": 0.7}])):
        folder.mkdir()
        lines = [{"step": 2, "epoch": 0.5, "loss": 0.6, "learning_rate": 1e-5}, *lines]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        (folder / "run.json").write_text(json.dumps({"name": folder.name, "status": "stopped"}))
    assert [row["rows"] for row in loss_rows(Run(Files(), old, "old"))] == ["training"]
    pages = [str(Dashboard(tmp_path).page(name, site=None)) for name in ("old", "new")]
    assert "Training loss" in pages[0]
    assert "Training and validation loss" in pages[1]
    assert "Validation matched: from 0.7" in pages[1]
    assert "eval_loss" not in read_lines(old / "metrics.jsonl")[1]
    assert evaluation_words(line, "accuracy", 4) == (
        "step 2 of 4: validation_matched accuracy 0.5000"
    )
    assert evaluation_words(line | {"eval_loss": 0.7}, "accuracy", 4).endswith(
        "0.5000, loss 0.7000"
    )
    assert TrainState(evaluation={"validation": {"metrics": {}}}).eval_loss is None
    assert TrainState().eval_loss is None
    two = {"a": {"eval_loss": 1.0}, "b": {"eval_loss": 2.0}}
    assert TrainState(evaluation=two).eval_loss == 1.5


def of_transformers(problem: str, logits: torch.Tensor, labels: torch.Tensor) -> float:
    config = transformers.BertConfig(num_labels=logits.shape[1], problem_type=problem)
    return float(ForSequenceClassificationLoss(labels, logits.double(), config))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_loss_is_that_of_transformers(scale: float) -> None:
    """With logits of any size: the probability of a wrong row may be 0 in float64."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(50, 4, generator=generator)
    classes = torch.randint(4, (50,), generator=generator)
    several = torch.randint(2, (50, 4), generator=generator).double()
    values = torch.randn(50, generator=generator).double()
    for problem, given, labels in (
        ("single_label_classification", logits, classes),
        ("multi_label_classification", logits, several),
        ("regression", logits[:, :1], values),
    ):
        found = mean_loss(problem, given.numpy(), labels.numpy())  # type: ignore[arg-type]
        assert found == pytest.approx(of_transformers(problem, given, labels), rel=1e-12)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_the_loss_of_many_rows_needs_little_memory(problem: Any) -> None:
    """It is computed at each evaluation, next to training."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(60_000, 100)).astype(np.float32)
    several = problem.startswith("multi")
    labels = rng.integers(0, 2, logits.shape) if several else rng.integers(0, 100, len(logits))
    mean_loss(problem, logits[:1], labels[:1])  # imports
    tracemalloc.start()
    found = mean_loss(problem, logits, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * logits.nbytes
    parts = [mean_loss(problem, logits[i : i + 1], labels[i : i + 1]) for i in range(0, 60_000, 50)]
    assert found == pytest.approx(np.mean(parts), rel=0.05)
