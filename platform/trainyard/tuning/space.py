"""Search space: a domain for each searched field, from --space and from --set."""

import difflib
import itertools
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from trainyard.config import PLACE_FIELDS, TOKENIZATION_FIELDS, DataFlags, TrainConfig
from trainyard.errors import UserError

if TYPE_CHECKING:
    import optuna

Kind = Literal["uniform", "loguniform", "randint", "choice", "grid"]

FIXED_FIELDS = (
    *PLACE_FIELDS, *(field.name for field in fields(DataFlags) if field.name != "seed"),
    "max_train_samples", "data_seed", "test_file", "test_share", "eval_steps",
    "early_stopping_patience", "logging_steps", "loop",
)  # fmt: skip
"""Fields of the cluster, the data and the evaluation, which all trials of a sweep share."""

SPACES: dict[str, dict[str, str]] = {
    "default": {"learning_rate": "loguniform:1e-5:5e-4", "weight_decay": "uniform:0:0.1"},
    "wide": {
        "learning_rate": "loguniform:5e-6:1e-3",
        "weight_decay": "uniform:0:0.1",
        "warmup_steps": "uniform:0:0.2",
        "num_train_epochs": "randint:2:6",
        "train_batch_size": "choice:8,16,32,64",
        "lr_scheduler_type": "choice:linear,cosine",
    },
    # Devlin et al. 2019, BERT, appendix A.3.
    "bert": {
        "learning_rate": "choice:5e-5,3e-5,2e-5",
        "train_batch_size": "choice:16,32",
        "num_train_epochs": "choice:2,3,4",
    },
    # The spread over seeds alone (Dodge et al. 2020): any "winner" here is noise.
    "seed": {"seed": "randint:0:100000"},
}


@dataclass(frozen=True)
class Domain:
    """Values that a field may take: the list `values`, or all from `low` to `high` inclusive."""

    kind: Kind
    low: float = 0
    high: float = 0
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.values:
            return f"{self.kind}:{','.join(map(str, self.values))}"
        return f"{self.kind}:{self.low:g}:{self.high:g}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values of a list, or both ends of a range; `build_space` checks each one."""
        return self.values or (self.low, self.high)

    def __contains__(self, value: Any) -> bool:
        if self.values:
            return value in self.values
        return isinstance(value, int | float) and self.low <= value <= self.high

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        from optuna import distributions

        match self.kind:
            case "uniform" | "loguniform":
                return distributions.FloatDistribution(
                    self.low, self.high, log=self.kind == "loguniform"
                )
            case "randint":
                return distributions.IntDistribution(int(self.low), int(self.high))
            case _:
                return distributions.CategoricalDistribution(self.values)


Space = Mapping[str, Domain]


def build_space(name: str, overrides: Iterable[str], base: TrainConfig) -> dict[str, Domain]:
    """Build the space `name` of SPACES with `field=domain` overrides, and check it on `base`.

    Each value of a list and both ends of a range must give a valid config.

    Raises:
        UserError: The space or a field is unknown, a domain does not parse, or a value is invalid.
    """
    if name not in SPACES:
        raise UserError(
            f"--space {name} is unknown{_near(name, SPACES)}; known: {', '.join(SPACES)}"
        )
    specs = dict(SPACES[name])
    for override in overrides:
        field, separator, text = override.partition("=")
        if not separator or not text:
            raise UserError(
                f"--set {override} has no field=domain; write for example "
                "learning_rate=loguniform:1e-6:1e-3"
            )
        specs[field.replace("-", "_")] = text
    space = {field: parse_domain(field, text) for field, text in specs.items()}
    for field, domain in space.items():
        for value in domain.ends:
            _try(base, {field: value}, f"{field}={domain}")
    # Valid batch sizes depend on each other, so every pair must be valid.
    sizes = [f for f in ("train_batch_size", "per_device_train_batch_size") if f in space]
    for values in itertools.product(*(space[field].ends for field in sizes)):
        chosen = dict(zip(sizes, values, strict=True))
        _try(base, chosen, ", ".join(f"{f}={v}" for f, v in chosen.items()))
    return space


def fit_micro_batch(size: int, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return `hyperparameters`, with the micro-batch reduced to a searched batch that is smaller.

    A micro-batch that is searched itself stays, so that the record of a trial holds its values.

    Args:
        size: Micro-batch of the default recipe.
        hyperparameters: Searched fields and their values.
    """
    batch = hyperparameters.get("train_batch_size", size)
    return {"per_device_train_batch_size": min(size, batch), **hyperparameters}


def parse_domain(field: str, text: str) -> Domain:
    """Parse `uniform:LOW:HIGH`, `loguniform:LOW:HIGH`, `randint:LOW:HIGH`, `choice:A,B`, `grid:A,B`.

    A text without a kind, as in `weight_decay=0.01`, is a list of choices.

    Args:
        field: Field of TrainConfig.
        text: Domain in one of these forms.

    Raises:
        UserError: The text does not parse or does not fit the field, or the field cannot be
            searched.
    """
    types_of = typing.get_type_hints(TrainConfig)
    if field not in types_of:
        raise UserError(f"--set {field}=…: there is no such field{_near(field, types_of)}")
    if field in FIXED_FIELDS:
        known = [f.name for f in fields(TrainConfig) if f.name not in FIXED_FIELDS]
        raise UserError(
            f"--set {field}=…: {field} is the same for all trials of a sweep; what can be searched: "
            f"{', '.join(known)}"
        )
    kind, separator, rest = text.partition(":")
    if not separator or kind not in typing.get_args(Kind):
        if separator and kind not in ("package",):
            raise UserError(
                f"--set {field}={text}: there is no '{kind}:'; write uniform:LOW:HIGH, "
                "loguniform:LOW:HIGH, randint:LOW:HIGH, choice:A,B or grid:A,B"
            )
        kind, rest = "choice", text
    if kind in ("choice", "grid"):
        values = tuple(_value(field, types_of[field], item, text) for item in rest.split(","))
        return Domain(typing.cast("Kind", kind), values=values)
    return _range(field, types_of[field], typing.cast("Kind", kind), rest, text)


def _range(field: str, type_: Any, kind: Kind, rest: str, text: str) -> Domain:
    try:
        low, high = map(float, rest.split(":"))
    except ValueError as error:
        raise UserError(
            f"--set {field}={text}: '{rest}' is not LOW:HIGH; write for example "
            f"{field}={kind}:{'1:8' if kind == 'randint' else '1e-6:1e-3'}"
        ) from error
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(
            f"--set {field}={text}: {low:g} to {high:g} is not a range; give two finite numbers"
        )
    if field in TOKENIZATION_FIELDS:
        raise UserError(
            f"--set {field}={text}: {field} decides the tokenization, which is done once for all "
            f"trials; list its values: {field}=choice:{int(low)},{int(high)}"
        )
    kinds = set(_options(type_)) & {int, float}
    if not kinds or ((int in kinds and float not in kinds) != (kind == "randint")):
        fitting = (
            "randint:LOW:HIGH" if int in kinds else "uniform:LOW:HIGH" if kinds else "choice:A,B"
        )
        raise UserError(
            f"--set {field}={text}: {field} cannot be drawn by {kind}; use {field}={fitting}"
        )
    if not low < high or (kind == "loguniform" and low <= 0):
        raise UserError(
            f"--set {field}={text}: {low:g} to {high:g} is not a range; the first must be less than the "
            f"second{' and above 0' if kind == 'loguniform' else ''}"
        )
    if kind != "randint":
        return Domain(kind, low, high)
    if not (low.is_integer() and high.is_integer()):
        raise UserError(
            f"--set {field}={text}: {low:g} to {high:g} is not a range of integers; give whole numbers"
        )
    return Domain(kind, int(low), int(high))


def _options(type_: Any) -> Sequence[Any]:
    if typing.get_origin(type_) in (typing.Union, types.UnionType):
        return typing.get_args(type_)
    return (type_,)


def _value(field: str, type_: Any, item: str, text: str) -> Any:
    item = item.strip()
    for option in _options(type_):
        if option is type(None) and item == "None":
            return None
        if typing.get_origin(option) is Literal and item in typing.get_args(option):
            return item
        if option is bool and item in ("True", "False"):
            return item == "True"
        if option is str and item:
            return item
        if option in (int, float):
            try:
                return option(item)
            except ValueError:
                continue
    literals = [
        v for o in _options(type_) if typing.get_origin(o) is Literal for v in typing.get_args(o)
    ]
    names = ", ".join(map(str, literals)) or " or ".join(
        "None" if option is type(None) else str(getattr(option, "__name__", option))
        for option in _options(type_)
    )
    raise UserError(f"--set {field}={text}: '{item}' is not a value of {field}; expected {names}")


def _try(base: TrainConfig, values: Mapping[str, Any], said: str) -> None:
    known = {field.name: getattr(base, field.name) for field in fields(TrainConfig)}
    try:
        TrainConfig(**{**known, **fit_micro_batch(base.per_device_train_batch_size, values)})
    except UserError as error:
        raise UserError(f"the space has {said}, but {error}") from error


def _near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{found[0]}'?" if found else ""
