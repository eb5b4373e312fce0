"""Sweeps: many runs of the same `fit`, searched, stopped early, confirmed, and reported honestly.

Modules: `config` flags, `space` the search space, `search` the next point, `schedulers` early stopping,
`trials` the runs, `confirm` and `honesty` the verdict, `conclude` the result and its files, `sweep` all
of it in order.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
