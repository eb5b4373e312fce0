"""Show runs and sweeps in a browser: `python jobs/dashboard.py --storage-path runs`."""

from trainyard.cli import run_job
from trainyard.report.dashboard import DashboardConfig, run_dashboard

if __name__ == "__main__":
    run_job(DashboardConfig, run_dashboard)
