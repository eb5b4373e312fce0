"""What 64 GPUs would give, on paper, and what would bound it: `python benchmarks/scaling_model.py`.

A step takes forward + max(backward, exchange) + optimizer, for DDP exchanges a bucket of gradients
while autograd computes the next (Li et al. 2020, "PyTorch Distributed", section 3.2).

    compute    6 FLOP for each weight of the encoder and token (Kaplan et al. 2020, "Scaling laws",
               section 2.1), one third forward; at 40 % of the GPU's peak
    exchange   each worker sends 2 (N - 1) / N times the gradients, 4 bytes a weight with its embeddings,
               in buckets of 25 MB, each after 2 log2 N messages one after the other: NCCL's double
               binary trees (Sanders, Speck and Träff 2009, "Two-tree algorithms")
    optimizer  AdamW reads or writes 7 floats a weight: gradient, and weight and two moments twice

Nothing here was measured: it says which term grows. What was measured is in results/scaling.json.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

UTILIZATION = 0.4
BUCKET = 25e6


@dataclass(frozen=True)
class Model:
    """Weights in all, and those in the encoder's layers."""

    name: str
    weights: float
    in_layers: float


@dataclass(frozen=True)
class Machines:
    """Peak FLOP/s (bf16, dense), bytes/s of memory, bytes/s between workers, seconds a message."""

    name: str
    peak: float
    memory: float
    link: float
    latency: float


MODELS = (Model("MiniLM-L6", 22.7e6, 10.6e6), Model("BERT-base", 109.5e6, 85.1e6))
MACHINES = (
    Machines("g6.2xlarge (cluster.yaml): one L4 each, 10 Gb/s", 121e12, 300e9, 1.25e9, 50e-6),
    Machines("p4d.24xlarge: eight A100 each, 400 Gb/s a node", 312e12, 1555e9, 50e9, 20e-6),
)
"""Peaks and memory by NVIDIA's data sheets, networks by AWS's instance pages; latencies assumed."""


def step_seconds(model: Model, machines: Machines, workers: int, tokens: float) -> dict[str, float]:
    """Seconds of each part of a step in which every worker has `tokens` tokens."""
    compute = 6 * model.in_layers * tokens / (UTILIZATION * machines.peak)
    gradients = 4 * model.weights
    messages = 2 * math.log2(workers) * max(1.0, gradients / BUCKET)
    sent = 2 * (workers - 1) / workers * gradients
    exchange = sent / machines.link + messages * machines.latency
    return {
        "forward": compute / 3,
        "backward": compute * 2 / 3,
        "exchange": exchange,
        "optimizer": 28 * model.weights / machines.memory,
    }


def total(parts: dict[str, float]) -> float:
    """Seconds of the step."""
    hidden = max(parts["backward"], parts["exchange"])
    return parts["forward"] + hidden + parts["optimizer"]


def gains() -> Iterator[list[str]]:
    """Yield a row for each model, kind of machine and size of a step: gains and the largest part."""
    for machines in MACHINES:
        for model in MODELS:
            for label, of_all in (("8,192 in all", 8192), ("8,192 a worker", None)):
                row, bound = [model.name, machines.name, label], ""
                for workers in (8, 64):
                    each = 8192 if of_all is None else of_all / workers
                    parts = step_seconds(model, machines, workers, each)
                    alone = step_seconds(model, machines, 1, each * workers)
                    row.append(f"{total(alone) / total(parts):.1f}")
                    name = max(parts, key=lambda part: parts[part])
                    bound = f"{name}, {1000 * parts[name]:.0f} of {1000 * total(parts):.0f} ms"
                yield [*row, bound]


if __name__ == "__main__":
    for row in gains():
        print(*row, sep=" | ")
