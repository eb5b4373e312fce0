"""The loss of a micro-batch: the model's own, or with class weights and label smoothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from trainyard.config import TrainConfig
from trainyard.tasks import Task


class Objective:
    """Loss of forward passes, in training only.

    A class weight multiplies the losses of the rows of its class; in multi-label data, the loss of the
    label where it applies. The weights have mean 1 over the training rows, so the learning rate
    keeps its meaning. A row's loss depends on no other row, so neither does the sum over a step.
    """

    def __init__(self, config: TrainConfig, task: Task, labels: NDArray[Any]) -> None:
        self._smoothing = config.label_smoothing_factor
        self._weights = class_weights(config, task, labels)
        self._several = task.problem_type == "multi_label_classification"

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run `model` on `batch`, which holds `labels`; return the mean loss of its rows."""
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
    """Return the weight of each label of the task, shape [labels]; None without --class-weights.

    Balanced weights are those of scikit-learn: rows / (classes * rows of the class). Of several labels a
    row, they are the rows without a label for each row with it.
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
        # A label of every row or of none has nothing to balance.
        uneven = (counts > 0) & (counts < len(labels))
        weights = np.where(uneven, (len(labels) - counts) / np.maximum(counts, 1), 1.0)
    else:
        present = counts > 0
        weights = len(labels) / (present.sum() * np.maximum(counts, 1))
    return torch.from_numpy(weights.astype(np.float32))
