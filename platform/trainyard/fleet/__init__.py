"""Many runs at the same time on Ray Tune.

Modules: `spec` one run, `actor` the process that trains it, `driver` the process of the job: its
`runner`, its `ray_tune` (all that calls Tune), and the `schedule` of runs of different length.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
