"""Judge a model: `python jobs/eval.py --model-name-or-path runs/NAME/model`, see --help."""

from trainyard.cli import run_job
from trainyard.evaluation import EvalConfig


def judge(config: EvalConfig) -> dict[str, object]:
    """One evaluation; imported here so that --help is instant."""
    from trainyard.evaluation import evaluate

    return evaluate(config).as_json()


if __name__ == "__main__":
    run_job(EvalConfig, judge)
