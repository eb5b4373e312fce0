"""Sweeps: many runs of the same `fit`, searched, stopped early, confirmed, and reported honestly.

`sweep` is the whole job in order. `config` holds its flags, `space` the search space, `search` the next
point, `schedulers` early stopping, and `trials` the runs. `confirm` and `honesty` give the verdict, and
`conclude` the result and its files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
