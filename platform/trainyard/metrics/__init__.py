"""Metrics of predictions: one table of rows, and the same figures for resampled rows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
