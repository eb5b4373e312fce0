"""The GLUE suite: every task, many seeds, one table with honest intervals, a submission file."""

from trainyard.suite.config import SuiteConfig
from trainyard.suite.run import run_suite

__all__ = ["SuiteConfig", "run_suite"]
