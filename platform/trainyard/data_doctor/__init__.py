"""The data doctor: what is wrong with a data set, before a model is trained or judged on it."""

from trainyard.data_doctor.config import DoctorConfig
from trainyard.data_doctor.run import examine

__all__ = ["DoctorConfig", "examine"]
