"""Many runs at the same time on Ray Tune.

Modules: `spec` one run, `process` the process that trains it, `runner` the driver, `ray_tune` all that
imports Tune, `schedule` the order of runs of different length.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
