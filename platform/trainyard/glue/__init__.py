"""The GLUE suite: every task, many seeds, one table, a submission file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
