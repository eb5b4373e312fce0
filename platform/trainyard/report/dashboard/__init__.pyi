from .job import DashboardConfig as DashboardConfig
from .job import run_dashboard as run_dashboard
