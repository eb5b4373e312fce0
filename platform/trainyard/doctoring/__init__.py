"""The data doctor: what is wrong with a data set, before a model is trained or judged on it."""

from trainyard.doctoring.config import DoctorConfig
from trainyard.doctoring.run import examine

__all__ = ["DoctorConfig", "examine"]
