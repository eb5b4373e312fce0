"""Predict every row of a file: `python jobs/predict.py --model-name-or-path runs/NAME/model …`."""

from trainyard.cli import run_job
from trainyard.inference import PredictConfig


def infer(config: PredictConfig) -> dict[str, object]:
    """Predict one file; imported here so that --help is instant."""
    from trainyard.inference import predict

    return predict(config)


if __name__ == "__main__":
    run_job(PredictConfig, infer)
