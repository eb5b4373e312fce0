from . import app as app
from .check import main as main
from .local import served as served
from .server import ServeConfig as ServeConfig
from .server import Server as Server
from .server import serve as serve
from .server import serve_model as serve_model
