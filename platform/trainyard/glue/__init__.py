"""GLUE suite: every task with several seeds, one table of scores, a submission file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
