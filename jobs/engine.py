"""Choose the engine that serves a model: `python jobs/engine.py --model-name-or-path runs/NAME/model`."""

from trainyard.cli import run_job
from trainyard.evaluation import EngineConfig


def measure(config: EngineConfig) -> dict[str, object]:
    """Measure one model on this machine; imported here so that --help is instant."""
    from trainyard.evaluation import choose_engine

    return choose_engine(config)


if __name__ == "__main__":
    run_job(EngineConfig, measure)
