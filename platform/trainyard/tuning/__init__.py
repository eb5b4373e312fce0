"""Sweeps: search hyperparameters, stop poor trials early, confirm the winner with fresh seeds.

`sweep` is the whole job. `config` holds its flags, `space` the search space, `searchers` the choice
of points, `schedulers` early stopping, and `trials` the runs. `confirm` and `honesty` compute the
verdict. `conclude` writes the result and its files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
