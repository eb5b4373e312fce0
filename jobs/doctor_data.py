"""Look for what spoils a data set: `python jobs/doctor_data.py --task cola --data-dir DIR`."""

from trainyard.cli import run_job
from trainyard.data_doctor.config import DoctorConfig


def doctor(config: DoctorConfig) -> dict[str, object]:
    """One examination; imported here so that --help is instant."""
    from trainyard.data_doctor import examine

    return examine(config).as_json()


if __name__ == "__main__":
    run_job(DoctorConfig, doctor)
