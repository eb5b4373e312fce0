"""Batch inference: every row of a file predicted once, in order, on one process or many."""

from trainyard.batch_inference.config import PredictConfig
from trainyard.batch_inference.run import predict

__all__ = ["PredictConfig", "predict"]
