"""Config of the tiny run that most tests start from."""

from pathlib import Path

from trainyard.config import TrainConfig


def small_config(model: Path, data: Path) -> TrainConfig:
    """Return the config of a run of `write_tiny_model` on `write_task`.

    It has three epochs of six steps, four micro-batches each. Every step is logged, and every row is
    in the ledger.
    """
    return TrainConfig(
        task="mrpc",
        data_dir=str(data),
        model_name_or_path=str(model),
        max_length=32,
        train_batch_size=16,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        ledger=True,
        keep_optimizer_state=True,  # tests compare it
    )
