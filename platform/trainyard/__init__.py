"""Trainyard: from a text data set to a fine-tuned, tuned and served Hugging Face model, by Ray.

    from trainyard import TrainConfig, fit
    result = fit(TrainConfig(task="mrpc", data_dir="glue"))

The names are loaded when they are first used, so importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainyard.config import TrainConfig
    from trainyard.errors import UserError
    from trainyard.evaluation import EvalConfig, evaluate
    from trainyard.results import FitResult
    from trainyard.training import fit

__version__ = "0.1.0"
__all__ = [
    "EvalConfig", "FitResult", "TrainConfig", "UserError", "__version__", "evaluate", "fit",
]  # fmt: skip

_HOME = {
    "EvalConfig": "trainyard.evaluation",
    "FitResult": "trainyard.results",
    "TrainConfig": "trainyard.config",
    "UserError": "trainyard.errors",
    "evaluate": "trainyard.evaluation",
    "fit": "trainyard.training",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'trainyard' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
