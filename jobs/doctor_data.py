"""Examine a data set for faults: `python jobs/doctor_data.py --task cola --data-dir DIR`."""

from trainyard.cli import run_job
from trainyard.doctor import DataDoctorConfig


def doctor(config: DataDoctorConfig) -> dict[str, object]:
    """Examine one data set; imported here so that --help is instant."""
    from trainyard.doctor import examine_data

    return examine_data(config).as_json()


if __name__ == "__main__":
    run_job(DataDoctorConfig, doctor)
