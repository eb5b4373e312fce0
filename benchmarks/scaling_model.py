"""Predict the speedup on up to 256 GPUs and its bottleneck: `python benchmarks/scaling_model.py`.

Nothing here was measured on GPUs; the model shows which term grows. Each worker has one micro-batch
per step.

    compute     6 FLOP for each weight of the layers and token (Kaplan et al. 2020, "Scaling laws",
                section 2.1), one third of them forward
    exchange    counted in units: a reduce-scatter, or an all-gather, of 4 bytes a weight. Inside a node
                each GPU sends (g - 1) / g of them over NVLink, between m nodes each node (m - 1) / m
                over its network, one after the other (NCCL's hierarchical collectives)
    ddp         an all-reduce, two units, while autograd computes the next bucket (Li et al. 2020,
                "PyTorch Distributed", section 3.2); each bucket takes 2 log2 N messages: double binary
                trees (Sanders, Speck and Träff 2009, "Two-tree algorithms")
    zero2       a unit of gradients during the backward pass, a unit of new weights after the step
                (Rajbhandari et al. 2020, "ZeRO", section 7.2.1)
    fsdp, zero3 a unit of weights in the forward pass, one of weights and one of gradients in the
                backward pass (the same, section 7.2.2)
    optimizer   AdamW reads or writes 7 floats a weight: gradient, and weight and two moments twice
    memory      16 bytes a weight: weight, gradient and two moments in fp32; activations come on top
    lost work   of checkpoints every T seconds, C seconds each, and a failure every M seconds: C / T +
                (T / 2 + restart) / M, least at T = sqrt(2 C M) (Young 1974, "A first order
                approximation to the optimum checkpoint interval"). An upper bound: a run trains while it
                writes, so less than C is lost
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

UTILIZATION = 0.4
"""Share of the peak."""
BUCKET = 25e6
"""Bytes of a bucket of ddp's all-reduce."""
WEIGHT, STATE = 4, 16
"""Bytes of a weight, and of a weight with its gradient and two moments, in fp32."""
STORED = 12
"""Bytes of a weight in a checkpoint: itself and two moments."""
WRITER = 0.27e9
"""Bytes/s that a process writes, hashes and syncs."""
STORAGE = 10e9
"""Bytes/s of the shared storage."""
INTERRUPTIONS, DAYS, GPUS = 419, 54, 16_384
"""Interruptions, days and GPUs of the training whose failures are assumed."""
FAILURES = INTERRUPTIONS / (DAYS * 24 * GPUS)
"""Interruptions a GPU and hour."""
RESTART = 90.0
"""Seconds."""
TOKENS = 8192
"""Tokens of a worker in a step."""


@dataclass(frozen=True)
class Model:
    """Model with its number of weights, in total and in the encoder's layers."""

    name: str
    weights: float
    in_layers: float


@dataclass(frozen=True)
class Machines:
    """Nodes of one kind.

    Peak FLOP/s (bf16, dense), bytes/s of memory, bytes of memory; GPUs a node, bytes/s that a GPU sends
    inside it; bytes/s that a node sends; seconds a message.
    """

    name: str
    peak: float
    memory: float
    size: float
    gpus: int
    nvlink: float
    link: float
    latency: float


MINILM, BERT = Model("MiniLM-L6", 22.7e6, 10.6e6), Model("BERT-base", 109.5e6, 85.1e6)
XLMR_XL, XLMR_XXL = Model("XLM-R XL", 3.5e9, 2.8e9), Model("XLM-R XXL", 10.7e9, 9.7e9)
"""Sizes: Goyal et al. 2021, "Larger-scale transformers"; 250,000 words of 2,560 and 4,096 numbers."""
MACHINES = (
    Machines("g6.2xlarge (cluster.yaml): one L4 each, 10 Gb/s",
             121e12, 300e9, 24e9, 1, math.inf, 1.25e9, 50e-6),
    Machines("p4d.24xlarge: eight A100 each, NVLink, 400 Gb/s a node",
             312e12, 1555e9, 40e9, 8, 300e9, 50e9, 20e-6),
    Machines("DGX H100: eight H100 each, NVLink, eight InfiniBand links of 400 Gb/s",
             989e12, 3350e9, 80e9, 8, 450e9, 400e9, 10e-6),
)  # fmt: skip
"""Rows of the table of machines; `assumptions` says where the numbers are from."""


@dataclass(frozen=True)
class Strategy:
    """Units of exchange in the forward pass, in the backward pass and after the step.

    `whole` is the number of bytes per weight that each worker holds; the rest of STATE is sharded.
    """

    name: str
    forward: int
    backward: int
    after: int
    whole: int

    @property
    def shards(self) -> bool:
        return self.whole < STATE


DDP = Strategy("ddp", 0, 2, 0, STATE)
ZERO2 = Strategy("deepspeed, ZeRO-2", 0, 1, 1, WEIGHT)
FSDP = Strategy("fsdp, ZeRO-3", 1, 2, 0, 0)


def unit_seconds(model: Model, machines: Machines, workers: int) -> float:
    """Return the seconds of a reduce-scatter or all-gather of 4 bytes a weight."""
    inside = min(workers, machines.gpus)
    nodes = workers / inside
    sent = WEIGHT * model.weights
    return (inside - 1) / inside * sent / machines.nvlink + (
        nodes - 1
    ) / nodes * sent / machines.link


def step_seconds(
    model: Model, machines: Machines, workers: int, tokens: float, strategy: Strategy = DDP
) -> dict[str, float]:
    """Return the seconds of each part of a step in which every worker has `tokens` tokens."""
    compute = 6 * model.in_layers * tokens / (UTILIZATION * machines.peak)
    unit = unit_seconds(model, machines, workers)
    messages = math.log2(workers) * max(1.0, WEIGHT * model.weights / BUCKET) * machines.latency
    return {
        "forward": compute / 3,
        "backward": compute * 2 / 3,
        "exchange, forward": strategy.forward * (unit + messages),
        "exchange": strategy.backward * (unit + messages),
        "exchange, after": strategy.after * (unit + messages),
        "optimizer": 28 * model.weights / machines.memory / (workers if strategy.shards else 1),
    }


def total(parts: dict[str, float]) -> float:
    """Return the seconds of the step: an exchange is hidden behind the pass that it belongs to."""
    forward = max(parts["forward"], parts["exchange, forward"])
    backward = max(parts["backward"], parts["exchange"])
    return forward + backward + parts["exchange, after"] + parts["optimizer"]


def bytes_per_gpu(model: Model, workers: int, strategy: Strategy) -> float:
    """Return the bytes of weights, gradients and moments that each worker holds."""
    return model.weights * (strategy.whole + (STATE - strategy.whole) / workers)


def bound(parts: dict[str, float]) -> str:
    """Name the largest part of a step."""
    name = max(parts, key=lambda part: parts[part])
    return f"{name}, {1000 * parts[name]:.0f} of {1000 * total(parts):.0f} ms"


def gains() -> Iterator[list[str]]:
    """Yield rows by machine, model and step size: speedups of ddp, largest part of a step."""
    for machines in MACHINES:
        for model in (MINILM, BERT):
            for label, of_all in (("8,192 in all", 8192), ("8,192 a worker", None)):
                row, largest = [model.name, machines.name, label], ""
                for workers in (8, 64, 256):
                    each = TOKENS if of_all is None else of_all / workers
                    parts = step_seconds(model, machines, workers, each)
                    alone = step_seconds(model, machines, 1, each * workers)
                    row.append(f"{total(alone) / total(parts):.1f}")
                    largest = bound(parts)
                yield [*row, largest]


def large_models() -> Iterator[list[str]]:
    """Yield a row for each large model and strategy on 256 GPUs."""
    workers = 256
    for machines in MACHINES[1:]:
        for model in (XLMR_XL, XLMR_XXL):
            for strategy in (DDP, ZERO2, FSDP):
                held = bytes_per_gpu(model, workers, strategy)
                parts = step_seconds(model, machines, workers, TOKENS, strategy)
                ideal = parts["forward"] + parts["backward"] + parts["optimizer"]
                speed = [f"{total(parts):.2f}", f"{100 * ideal / total(parts):.0f} %", bound(parts)]
                yield [model.name, machines.name.split(":")[0], strategy.name, f"{held / 1e9:.1f}",
                       *(speed if held < machines.size else ["does not fit", "", ""])]  # fmt: skip


def checkpoint_seconds(model: Model, writers: int) -> float:
    """Return the seconds in which `writers` processes write a checkpoint."""
    return STORED * model.weights / min(writers * WRITER, STORAGE)


def between_failures(workers: int) -> float:
    """Return the mean seconds between failures."""
    return 3600 / (FAILURES * workers)


def best_interval(checkpoint: float, failure: float) -> float:
    """Return the seconds between checkpoints that minimize the lost time."""
    return math.sqrt(2 * checkpoint * failure)


def lost_share(checkpoint: float, interval: float, failure: float) -> float:
    """Return the share of time lost to writing checkpoints, restarts and repeated steps."""
    return checkpoint / interval + (interval / 2 + RESTART) / failure


def losses() -> Iterator[list[str]]:
    """Yield a row for each model and kind of checkpoint on 256 GPUs."""
    workers, failure = 256, between_failures(256)
    for model in (BERT, XLMR_XL, XLMR_XXL):
        for name, writers in (("rank 0 writes", 1), ("each worker writes its part", workers)):
            checkpoint = checkpoint_seconds(model, writers)
            interval = best_interval(checkpoint, failure)
            lost = 100 * lost_share(checkpoint, interval, failure)
            yield [model.name, name, f"{checkpoint:.1f}", f"{failure / 3600:.0f}",
                   f"{interval / 60:.0f}", f"{lost:.2f} %"]  # fmt: skip


def assumptions() -> Iterator[list[str]]:
    """Yield a row for each constant of the model: its meaning, its value and where it is from."""
    yield ["share of the peak that a GPU computes", f"{100 * UTILIZATION:.0f} %",
           "assumed; `python benchmarks/gpu.py --only speed` measures it"]  # fmt: skip
    yield ["tokens of a worker in a step, unless a table says otherwise", f"{TOKENS:,}",
           "assumed: 64 rows of 128"]  # fmt: skip
    yield ["bytes of a weight with gradient and moments", f"{STATE}",
           f"fp32: {WEIGHT} each for the weight, its gradient and two moments; no activations"]  # fmt: skip
    yield ["bucket of ddp's all-reduce", f"{BUCKET / 1e6:.0f} MB", "DDP's default `bucket_cap_mb`"]
    yield ["bytes of a weight in a checkpoint", f"{STORED}", "fp32: the weight and two moments"]
    yield ["a process writes, hashes and syncs", f"{WRITER / 1e9:.2f} GB/s",
           "once, by hand: BERT base (1.3 GB) in 4.9 s on a core of an AMD EPYC, 2026-11-29"]  # fmt: skip
    yield ["shared storage", f"{STORAGE / 1e9:.0f} GB/s",
           "Amazon FSx for Lustre: 1,000 MB/s for each TiB, ten TiB"]  # fmt: skip
    yield ["hours between failures of one GPU", f"{1 / FAILURES:,.0f}",
           f"{INTERRUPTIONS} interruptions in {DAYS} days on {GPUS:,} H100 (Dubey et al. 2024, "
           '"The Llama 3 herd of models", section 3.3.4)']  # fmt: skip
    yield ["restart after a failure", f"{RESTART:.0f} s",
           "Ray's default health check takes about a minute, starting again half a minute"]  # fmt: skip
    yield ["peaks, memory and links of the machines", "next table",
           "data sheets of NVIDIA (GPUs, NVLink, InfiniBand) and AWS (networks)"]  # fmt: skip
    yield ["seconds of a message", "next table", "assumed"]


def machines() -> Iterator[list[str]]:
    """Yield a row for each kind of machine: its numbers in the model."""
    for kind in MACHINES:
        inside = "one GPU" if math.isinf(kind.nvlink) else f"{kind.nvlink / 1e9:.0f}"
        yield [kind.name.split(":")[0], f"{kind.gpus}", f"{kind.peak / 1e12:.0f}",
               f"{kind.size / 1e9:.0f}", f"{kind.memory / 1e9:.0f}", inside, f"{kind.link / 1e9:.4g}",
               f"{kind.latency * 1e6:.0f}"]  # fmt: skip


if __name__ == "__main__":
    for rows in (assumptions(), machines(), gains(), large_models(), losses()):
        for row in rows:
            print(*row, sep=" | ")
