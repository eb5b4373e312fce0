"""Search hyperparameters: `python jobs/tune.py --task mrpc --data-dir DIR`, see --help for all flags."""

from trainyard.cli import run_job
from trainyard.tuning import SweepConfig


def tune(config: SweepConfig) -> dict[str, object]:
    """Run one sweep; imported here so that --help is instant."""
    from trainyard.tuning import tune

    return tune(config).as_json()


if __name__ == "__main__":
    run_job(SweepConfig, tune)
