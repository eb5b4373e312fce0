"""Sweeps: many runs of the same `fit`, searched, stopped early, confirmed, and reported honestly.

Where to find what: `config` flags, `space` what is searched, `search` which point is next,
`schedulers` who is stopped, `placement` what fits on the cluster, `trial` one run inside Tune,
`runner` many of them, `honesty` and `confirm` the verdict, `conclude` what is made of it, `folder` what
a sweep leaves, `outputs` the files for people, `clock` how long it took, `sweep` all of it in order.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
