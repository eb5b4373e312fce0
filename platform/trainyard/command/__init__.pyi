from .cli import parse as parse
from .jobs import JOBS as JOBS
from .jobs import Job as Job
from .jobs import main as main
