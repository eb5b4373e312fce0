"""Exact evaluation: every row of a split is predicted once, at any number of processes."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainyard.batch_plan import evaluation_batches, padded_length
from trainyard.config import ScoringFlags
from trainyard.data import TokenTable
from trainyard.metrics import answers, build_metric, decode, get_metric, is_constant
from trainyard.models import RIGHT, Padding, find_padding
from trainyard.stats import CELLS_AT_ONCE, metric_interval
from trainyard.tasks import ProblemType, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


def padding_of(model: "PreTrainedModel", table: TokenTable, side: str) -> Padding:
    """Find the padding for a model in evaluation mode with rows of a table, see `find_padding`.

    All processes of a group use the result of process 0: their batches must be the same, but their
    devices can round differently.
    """
    import torch.distributed as group  # not at the top: drivers import this module without torch

    rows = table.two_rows()
    if len(rows) == 1:
        return RIGHT
    found = [find_padding(model, rows, {"input_ids": table.info["pad_id"]}, side)]
    if group.is_available() and group.is_initialized():
        group.broadcast_object_list(found, src=0)
    return found[0]


def predict(
    accelerator: "Accelerator",
    model: Any,
    table: TokenTable,
    config: ScoringFlags,
    padding: Padding = RIGHT,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Predict all rows; every process returns the logits in row order, shape [rows, labels].

    Process 0 calls `progress` after each pass with the number of rows that all processes predicted
    in the pass. The model is in training mode afterwards.

    The batches do not depend on the number of processes. Process r of N runs the batches r, r+N, …
    and fills in their rows. The sum over processes is exact, because all other processes hold zeros
    there.
    """
    import torch

    batches = evaluation_batches(
        table.lengths, config.per_device_eval_batch_size, equal_lengths=padding.equal_lengths
    )
    world, rank = accelerator.num_processes, accelerator.process_index
    logits: Any = None
    model.eval()
    with torch.no_grad():
        for first in range(0, len(batches), world):
            # Sharded models need every process in every pass: a spare process repeats a batch.
            mine = first + rank < len(batches)
            rows = batches[first + rank if mine else 0]
            width = padded_length(
                int(table.lengths[rows].max()),
                1 if padding.equal_lengths else config.padding_multiple,
                config.max_length,
                fixed=config.fixed_length,
            )
            inputs = table.gather(rows, width, padding)
            del inputs["labels"]
            tensors = {k: torch.from_numpy(v).to(accelerator.device) for k, v in inputs.items()}
            output = model(**tensors).logits.float()
            if logits is None:
                logits = torch.zeros(len(table), output.shape[1], device=accelerator.device)
            if mine:
                logits[torch.from_numpy(rows).to(accelerator.device)] = output
            if progress is not None and rank == 0:
                progress(sum(map(len, batches[first : first + world])))
    model.train()
    if world > 1:
        torch.distributed.all_reduce(logits)
    result: NDArray[np.float32] = logits.cpu().numpy()
    return result


def not_finite(logits: Mapping[str, NDArray[Any]]) -> str | None:
    """Describe the first split with NaN or infinite logits, and count its rows with such logits.

    Returns None if all logits are finite.
    """
    for split, found in logits.items():
        bad = int((~np.isfinite(found)).any(axis=1).sum())
        if bad:
            return f"NaN or infinity on {bad} of {len(found)} rows of {split}"
    return None


def score(
    task: Task,
    logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    seed: int,
    groups: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Compute the metrics of one split with their 95 % intervals over rows, see `metric_interval`.

    Returns {"metrics": {name: value}, "intervals": {name: [low, high]}, "eval_loss": value}, see
    `mean_loss`. If the model predicts the same label for every row although the labels differ, the
    key `one_answer` holds the label.

    Args:
        task: Task with its metrics and thresholds.
        logits: Logits of shape [rows, labels].
        labels: Class indices or values of shape [rows], or 0/1 of shape [rows, labels].
        seed: Seed of the bootstrap.
        groups: Group of each row, shape [rows]; None for independent rows.

    Raises:
        UserError: There are no rows, or all rows belong to one group.
    """
    references = np.asarray(labels)
    values: dict[str, float] = {}
    intervals = {}
    for of_scores in (False, True):
        names = [name for name in task.metrics if get_metric(name).of_scores == of_scores]
        if not names:
            continue
        read = answers(names[0], task.problem_type, logits, task.cuts)
        values |= build_metric(names).compute(predictions=read, references=references)
        for name in names:
            interval = metric_interval(name, read, references, seed=seed, groups=groups)
            intervals[name] = list(interval)
    found: dict[str, Any] = {
        "metrics": {name: values[name] for name in task.metrics},
        "intervals": {name: intervals[name] for name in task.metrics},
        "eval_loss": mean_loss(task.problem_type, logits, references),
    }
    predictions = decode(task.problem_type, logits, task.cuts)
    if (answer := _one_answer(task, predictions, references)) is not None:
        found["one_answer"] = answer
    return found


def mean_loss(problem_type: ProblemType, logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Compute the mean loss over rows, with the loss functions of transformers.

    The loss of a row is the cross-entropy, the squared error of a regression, or the mean binary
    cross-entropy over several labels. Class weights and label smoothing do not apply. Sums are in
    float64.

    Args:
        problem_type: Problem type of the task.
        logits: Logits of shape [rows, labels].
        labels: Class indices or values of shape [rows], or 0/1 of shape [rows, labels].
    """
    at_once = max(1, CELLS_AT_ONCE // logits.shape[1])
    parts = [
        _row_losses(problem_type, logits[first : first + at_once], labels[first : first + at_once])
        for first in range(0, len(logits), at_once)
    ]
    return float(np.concatenate(parts).mean())


def _row_losses(
    problem_type: ProblemType, logits: NDArray[Any], labels: NDArray[Any]
) -> NDArray[np.float64]:
    from scipy.special import log_softmax

    wide = logits.astype(np.float64)
    if problem_type == "regression":
        losses: NDArray[np.float64] = (wide[:, 0] - labels) ** 2
    elif problem_type == "multi_label_classification":
        losses = (np.logaddexp(0, wide) - wide * labels).mean(axis=1)
    else:
        losses = -log_softmax(wide, axis=1)[np.arange(len(labels)), labels]
    return losses


def _one_answer(task: Task, predictions: NDArray[Any], references: NDArray[Any]) -> str | None:
    """Return the prediction that is equal for all rows although the labels differ; else None."""
    if is_constant(references) or not is_constant(predictions):
        return None
    first = predictions[0]
    if task.problem_type == "regression":
        return f"{float(first):.4g}"
    if task.problem_type == "multi_label_classification":
        names = [name for name, present in zip(task.labels, first, strict=True) if present]
        return ", ".join(names) or "no label"
    return task.labels[int(first)]


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Select the metrics and intervals of a result of `score`, to store in journals and models."""
    return {"metrics": found["metrics"], "intervals": found["intervals"]}


def one_answers(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Collect the constant predictions (`one_answer`) in results of `score`, by split."""
    return {name: found["one_answer"] for name, found in splits.items() if "one_answer" in found}


def one_answer_words(answers: Mapping[str, str]) -> str:
    """Return a sentence about the constant predictions of `one_answers`; "" if there are none."""
    if not answers:
        return ""
    listed = ", ".join(f"'{answer}' for every row of {split}" for split, answer in answers.items())
    return f"the model answers {listed}, so the score says nothing about the texts"
