"""Optimizer and learning rate schedule of a run."""

import torch
import transformers
from torch.optim.lr_scheduler import LRScheduler

from trainyard.config import TrainConfig


def build_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov and Hutter 2019) over the trainable parameters.

    Vectors, such as biases and the weights of norms, get no weight decay.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def build_scheduler(
    config: TrainConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> LRScheduler:
    """Build a learning rate schedule of transformers, to be advanced once per optimizer step.

    `warmup_steps` below 1 is a share of `total_steps`.
    """
    warmup = config.warmup_steps
    return transformers.get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        num_warmup_steps=int(warmup) if warmup >= 1 else round(warmup * total_steps),
        num_training_steps=total_steps,
    )
