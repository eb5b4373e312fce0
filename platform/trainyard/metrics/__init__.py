"""Metrics of predictions, their values on bootstrap resamples, and thresholds of labels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
