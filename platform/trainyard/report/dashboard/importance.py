"""How much each hyperparameter of a sweep matters, by Optuna's PED-ANOVA.

Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
Arbitrary Subspaces" (IJCAI 2023): how differently a hyperparameter is distributed among the best
trials than among all. It takes milliseconds, and asks what people ask: what do good trials share?
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.storage import real

FEWEST = 10
"""Trials below which an importance would be a guess."""


def importances(
    rows: Sequence[tuple[Mapping[str, Any], float]], logarithmic: Mapping[str, bool]
) -> dict[str, float]:
    """Share of each hyperparameter, largest first, in sum 1, from (hyperparameters, score) rows.

    Empty when there is too little to tell: fewer than `FEWEST` trials, or none that vary.
    """
    rows = [(given, score) for given, score in rows if math.isfinite(score)]
    names = [
        name
        for name in dict.fromkeys(name for given, _ in rows for name in given)
        if all(name in given for given, _ in rows)
        and len({str(given[name]) for given, _ in rows}) > 1
    ]
    if len(rows) < FEWEST or not names or len({score for _, score in rows}) < 2:
        return {}
    if len(names) == 1:
        return {names[0]: 1.0}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    spread = {
        name: _distribution([given[name] for given, _ in rows], log=logarithmic.get(name, False))
        for name in names
    }
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(direction="maximize")
            for given, score in rows:
                values = {name: _value(spread[name], given[name]) for name in names}
                study.add_trial(
                    optuna.trial.create_trial(params=values, distributions=spread, value=score)
                )
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    finally:
        optuna.logging.set_verbosity(before)
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def _distribution(values: Sequence[Any], *, log: bool) -> Any:
    from optuna import distributions

    numbers = [real(value) for value in values]
    finite = [value for value in numbers if value is not None and math.isfinite(value)]
    if len(finite) < len(values):
        return distributions.CategoricalDistribution(sorted({str(value) for value in values}))
    low, high = min(finite), max(finite)
    if all(isinstance(value, int) for value in finite) and not log:
        return distributions.IntDistribution(int(low), int(high))
    return distributions.FloatDistribution(low, high, log=log and low > 0)


def _value(distribution: Any, value: Any) -> Any:
    return str(value) if hasattr(distribution, "choices") else value
