"""Predict every row of a file: `python jobs/predict.py --model-name-or-path runs/NAME/model …`."""

from trainyard.batch_inference.config import PredictConfig
from trainyard.cli import run_job


def infer(config: PredictConfig) -> dict[str, object]:
    """One file; imported here so that --help is instant."""
    from trainyard.batch_inference import predict

    return predict(config)


if __name__ == "__main__":
    run_job(PredictConfig, infer)
