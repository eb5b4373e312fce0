"""Judge any checkpoint: exact scores with intervals, where it fails, how far it can be believed."""

from trainyard.evaluation.config import EvalConfig
from trainyard.evaluation.run import evaluate

__all__ = ["EvalConfig", "evaluate"]
