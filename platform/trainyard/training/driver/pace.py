"""Settings that cost time and gain nothing: advice before a run, which never changes them."""

from trainyard.config import TrainConfig

FULL_PASS = 16
"""Rows of a micro-batch above which a larger one is hardly faster on a CPU."""
FEW_ROWS = 500
"""Rows below which every setting is fast enough."""
MANY_STEPS = 300
"""Steps of an epoch from which a larger batch is worth a sentence."""


def slow_settings(config: TrainConfig, rows: int) -> list[str]:
    """Return at most one sentence that recommends faster settings for a run over `rows` rows."""
    workers, batch, size = (
        config.worker_counts[0],
        config.train_batch_size,
        config.per_device_train_batch_size,
    )
    if rows < FEW_ROWS:
        return []
    steps = -(-rows // batch)
    whole = min(batch // workers, FULL_PASS)
    advice = []
    if size < whole and (batch // workers) % whole == 0:
        advice.append(f"--per-device-train-batch-size {whole} computes a step in fewer passes")
    if steps >= MANY_STEPS and batch < 32:
        advice.append(
            f"--train-batch-size 32 --per-device-train-batch-size 16 --learning-rate 1e-4 needs "
            f"{-(-rows // 32)} steps an epoch instead of {steps}"
        )
    return [f"faster: {advice[-1]} (`trainyard init` writes such settings)"] if advice else []
