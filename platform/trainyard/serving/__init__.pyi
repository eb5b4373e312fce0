from . import app as app
from .check import main as main
from .local import served as served
