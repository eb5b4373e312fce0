from .driver.fit import Trial as Trial
from .driver.fit import fit as fit
from .driver.result import NUMERICS_VERSION as NUMERICS_VERSION
from .driver.result import (
    AnotherRun as AnotherRun,
)
from .driver.result import (
    FitResult as FitResult,
)
from .driver.result import (
    OtherBaseModel as OtherBaseModel,
)
from .driver.result import computed_otherwise as computed_otherwise
from .driver.result import (
    finished_run as finished_run,
)
from .driver.result import (
    planned_otherwise as planned_otherwise,
)
from .worker.strategies import STRATEGIES as STRATEGIES
from .worker.strategies import check_strategy as check_strategy
