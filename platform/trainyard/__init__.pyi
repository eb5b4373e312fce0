from .config.tables import as_file as as_file
from .config.train import TrainConfig as TrainConfig
from .errors import UserError as UserError
from .evaluation.config import EvalConfig as EvalConfig
from .evaluation.run import evaluate as evaluate
from .inference.batch.config import PredictConfig as PredictConfig
from .inference.batch.run import predict as predict
from .serving.server import ServeConfig as ServeConfig
from .serving.server import Server as Server
from .serving.server import serve as serve
from .training.driver.fit import fit as fit
from .training.driver.result import FitResult as FitResult
from .tuning.conclude import SweepResult as SweepResult
from .tuning.config import SweepConfig as SweepConfig
from .tuning.sweep import tune as tune

__version__: str
