"""Advice, printed before a run, on settings that only cost time. No setting is changed."""

from trainyard.config import TrainConfig

FULL_PASS = 16
"""Rows of a micro-batch. A larger micro-batch is hardly faster per row on a CPU."""
FEW_ROWS = 500
"""Training rows below which every setting is fast enough, so there is no advice."""
MANY_STEPS = 300
"""Minimum number of steps per epoch at which a larger batch is recommended."""


def slow_settings(config: TrainConfig, rows: int) -> list[str]:
    """Return at most one sentence that recommends faster settings for `rows` training rows."""
    workers, batch, size = (
        config.worker_counts[0],
        config.train_batch_size,
        config.per_device_train_batch_size,
    )
    if rows < FEW_ROWS:
        return []
    steps = -(-rows // batch)
    tokens = config.per_device_train_tokens
    # A token budget holds at least this number of rows, however long they are.
    full = FULL_PASS if tokens is None else tokens // config.max_length
    whole = min(batch // workers, full)
    advice = []
    if size < whole and (batch // workers) % whole == 0:
        advice.append(f"--per-device-train-batch-size {whole} computes a step in fewer passes")
    if steps >= MANY_STEPS and batch < 32:
        advice.append(
            f"--train-batch-size 32 --per-device-train-batch-size 16 --learning-rate 1e-4 needs "
            f"{-(-rows // 32)} steps an epoch instead of {steps}"
        )
    return [f"faster: {advice[-1]} (`trainyard init` writes such settings)"] if advice else []
