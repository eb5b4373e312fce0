"""Evaluate a model: `python jobs/eval.py --model-name-or-path runs/NAME/model`, see --help."""

from trainyard.cli import run_job
from trainyard.evaluation import EvalConfig


def run_evaluation(config: EvalConfig) -> dict[str, object]:
    """Evaluate one model; imported here so that --help is instant."""
    from trainyard.evaluation import evaluate

    return evaluate(config).as_json()


if __name__ == "__main__":
    run_job(EvalConfig, run_evaluation)
