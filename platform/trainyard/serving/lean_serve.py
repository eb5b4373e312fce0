"""Import Ray Serve without pandas; importing this module is all that it is for.

Ray Serve imports pandas, if it is installed, only to encode data frames in answers. That takes
half a second in each process of Serve. In the Ray of `trainyard serve`, which holds one gateway and
one model, nothing answers with a data frame. All its processes import this module first, see
`served`. Later imports of pandas are not affected.
"""

import sys

_hides = "pandas" not in sys.modules
if _hides:
    sys.modules["pandas"] = None  # type: ignore[assignment]  # its import raises ImportError
try:
    import ray.serve  # noqa: F401
finally:
    if _hides:
        del sys.modules["pandas"]
