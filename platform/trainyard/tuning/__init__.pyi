from .config import SweepConfig as SweepConfig
from .sweep import tune as tune
