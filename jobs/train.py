"""Fine-tune a model: `python jobs/train.py --task mrpc --data-dir DIR`, see --help for all flags."""

from trainyard.cli import run_job
from trainyard.config import TrainConfig


def train(config: TrainConfig) -> dict[str, object]:
    """Train one run; imported here so that --help is instant."""
    from trainyard.training import fit

    return fit(config).as_json()


if __name__ == "__main__":
    run_job(TrainConfig, train)
