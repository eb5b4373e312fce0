"""The `trainyard` command: the table of jobs, reading of flags, help, `init` and `quickstart`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
