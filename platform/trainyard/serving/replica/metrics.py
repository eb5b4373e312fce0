"""Metrics of a model, which Ray exports to Prometheus."""

from typing import Any

from trainyard.serving.replica.batcher import BatchRecord

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
"""Boundaries of histograms, in seconds."""
TOKENS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768]
"""Boundaries of a histogram, in tokens."""

HISTOGRAMS = {
    "tokenize_seconds": ("Reading and tokenizing one request.", SECONDS),
    "queue_seconds": ("A request's wait for the model.", SECONDS),
    "forward_seconds": ("Forward passes of one request.", SECONDS),
    "total_seconds": ("A request inside the replica, from its body to its answer.", SECONDS),
    "batch_tokens": ("Padded tokens of a forward pass.", TOKENS),
    "batch_rows": ("Rows of a forward pass.", [1, 2, 4, 8, 16, 32, 64, 128]),
}
COUNTERS = {
    "text_tokens": "Tokens of text that were computed; the rest of padded_tokens is padding.",
    "padded_tokens": "Tokens that were computed.",
    "refused": "Requests without an answer, by kind.",
}
GAUGES = {"waiting_rows": "Rows that no forward pass has taken yet."}


class ReplicaMetrics:
    """Metrics that record nothing, for hosts outside Ray; base of `RayReplicaMetrics`."""

    def answered(self, seconds: float) -> None:
        """Record a request that got an answer after `seconds` in the replica."""

    def timed(self, tokenize: float, queue: float, forward: float) -> None:
        """Record the seconds that a request spent in tokenizing, queue and forward passes."""

    def refused(self, kind: str) -> None:
        """Record a request that got an error, by its kind in `STATUSES`."""

    def batch(self, record: BatchRecord) -> None:
        """Record a forward pass."""

    def waiting(self, rows: int) -> None:
        """Set the number of rows in the queue."""


class RayReplicaMetrics(ReplicaMetrics):
    """Ray metrics named `trainyard_…` on the node's Prometheus port, tagged by model."""

    def __init__(self, model: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._metrics: dict[str, Any] = {
            name: Histogram(
                f"trainyard_{name}", description=text, boundaries=bounds, tag_keys=("model",)
            )
            for name, (text, bounds) in HISTOGRAMS.items()
        } | {
            name: Counter(
                f"trainyard_{name}_total", description=text, tag_keys=("model", "kind")
            )
            for name, text in COUNTERS.items()
        } | {
            name: Gauge(f"trainyard_{name}", description=text, tag_keys=("model",))
            for name, text in GAUGES.items()
        }  # fmt: skip
        for name, metric in self._metrics.items():
            metric.set_default_tags(
                {"model": model} | ({"kind": ""} if name in COUNTERS else {})
            )  # fmt: skip

    def answered(self, seconds: float) -> None:
        self._metrics["total_seconds"].observe(seconds)

    def timed(self, tokenize: float, queue: float, forward: float) -> None:
        for name, seconds in (("tokenize", tokenize), ("queue", queue), ("forward", forward)):
            self._metrics[f"{name}_seconds"].observe(max(seconds, 1e-9))

    def refused(self, kind: str) -> None:
        self._metrics["refused"].inc(tags={"kind": kind})

    def batch(self, record: BatchRecord) -> None:
        self._metrics["batch_tokens"].observe(record.padded_tokens)
        self._metrics["batch_rows"].observe(record.rows)
        self._metrics["text_tokens"].inc(record.text_tokens)
        self._metrics["padded_tokens"].inc(record.padded_tokens)

    def waiting(self, rows: int) -> None:
        self._metrics["waiting_rows"].set(rows)
