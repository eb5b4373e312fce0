"""Many runs at the same time on Ray Tune.

`spec` describes a run and its outcome. `actor` is the process that trains runs. The modules of
`driver` run in the job's process: `runner` controls the fleet, `ray_tune` calls Tune, and
`schedule` orders runs of different length.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
