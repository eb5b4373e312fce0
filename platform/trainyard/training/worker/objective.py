"""Training loss of a micro-batch: the model's own, or with class weights and label smoothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from trainyard.config import TrainConfig
from trainyard.tasks import Task


class Objective:
    """Training loss of one forward pass; evaluation does not use it.

    With one label per row, a class weight multiplies the losses of the rows of its class. These
    weights have mean 1 over the training rows, so the scale of the loss stays the same. With
    several labels per row, a weight multiplies the loss of a label in the rows that have the label.
    A row's loss does not depend on other rows.

    Args:
        config: Flags with class weights and label smoothing.
        task: Task of the run.
        labels: Labels of the training rows: [rows], or [rows, labels] for multi-label data.
    """

    def __init__(self, config: TrainConfig, task: Task, labels: NDArray[Any]) -> None:
        self._smoothing = config.label_smoothing_factor
        self._weights = class_weights(config, task, labels)
        self._several = task.problem_type == "multi_label_classification"

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run `model` on the tensors of `batch` with `labels`; return the scalar mean loss."""
        if self._weights is None and not self._smoothing:
            loss: torch.Tensor = model(**batch).loss
            return loss
        labels = batch["labels"]
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.float()
        weights = torch.ones(logits.shape[1]) if self._weights is None else self._weights
        weights = weights.to(logits.device)
        if self._several:
            smoothed = labels * (1 - self._smoothing) + self._smoothing / 2
            return functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)
        losses = functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self._smoothing
        )
        return (losses * weights[labels]).mean()


def class_weights(config: TrainConfig, task: Task, labels: NDArray[Any]) -> torch.Tensor | None:
    """Return the weight of each label of the task, float32 [labels]; None without --class-weights.

    Balanced weights follow scikit-learn: rows / (classes that occur * rows of the class). For
    multi-label data, the balanced weight is the ratio of rows without the label to rows with it.

    Args:
        config: Flags with the class weights.
        task: Task of the run.
        labels: Labels of the training rows: [rows], or [rows, labels] for multi-label data.
    """
    if config.class_weights is None:
        return None
    several = task.problem_type == "multi_label_classification"
    counts = labels.sum(axis=0) if several else np.bincount(labels, minlength=task.num_labels)
    if isinstance(config.class_weights, Mapping):
        weights = np.array([config.class_weights.get(name, 1.0) for name in task.labels])
        if not several:
            weights *= len(labels) / (weights * counts).sum()
    elif several:
        # A label that all rows or no rows have cannot be balanced.
        uneven = (counts > 0) & (counts < len(labels))
        weights = np.where(uneven, (len(labels) - counts) / np.maximum(counts, 1), 1.0)
    else:
        present = counts > 0
        weights = len(labels) / (present.sum() * np.maximum(counts, 1))
    return torch.from_numpy(weights.astype(np.float32))
