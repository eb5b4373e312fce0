"""Check that `train` with these flags works on this cluster: `python jobs/doctor.py --num-workers 8 …`."""

from trainyard.cli import run_job
from trainyard.doctor import DoctorConfig


def doctor(config: DoctorConfig) -> dict[str, object]:
    """Examine the cluster; exit status 1 when something will fail."""
    from trainyard.doctor import examine_cluster

    return examine_cluster(config)


if __name__ == "__main__":
    run_job(DoctorConfig, doctor)
