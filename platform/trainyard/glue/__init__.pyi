from .config import SuiteConfig as SuiteConfig
from .suite import run_suite as run_suite
