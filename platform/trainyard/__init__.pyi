from .config import TrainConfig as TrainConfig
from .errors import UserError as UserError
from .evaluation.config import EvalConfig as EvalConfig
from .evaluation.run import evaluate as evaluate
from .training.driver.fit import fit as fit
from .training.driver.result import FitResult as FitResult

__version__: str
