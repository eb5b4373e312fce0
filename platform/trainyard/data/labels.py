"""Conversion of labels: raw values to names, and names to training targets."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from trainyard.data.columns import Batch, did_you_mean, listing
from trainyard.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from trainyard.tasks import ProblemType

_WHOLE_FLOAT = re.compile(r"(-?[0-9]+)\.0+")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_MISSING = {
    "nan", "-nan", "na", "#na", "n/a", "#n/a", "#n/a n/a", "null", "none", "<na>", "1.#ind", "-1.#ind",
    "1.#qnan", "-1.#qnan",
}  # fmt: skip
"""Case-folded spellings of a missing value, as pandas reads them."""
_ITEM = r"""'[^']*'|"[^"]*"|[-+.\deE]+"""
_ARRAY = re.compile(rf"\[\s*(?:{_ITEM})(?:\s+(?:{_ITEM}))+\s*\]")
"""Text of a numpy array, which has no commas."""
EMPTY = "(empty)"
"""Group of the rows whose value is missing or blank, in a column that groups rows."""
_LARGEST_TARGET = float(np.finfo(np.float32).max)

_MANY_LABELS = 1_000
"""Maximum label names with fewer than two rows each on average; more are likely texts or ids."""
_ENOUGH_ROWS = 100_000
"""Rows after which a column of ids is refused, before its names fill the memory."""


@dataclass(frozen=True, slots=True)
class LabelEncoder:
    """Encoder of labels as training targets."""

    problem_type: ProblemType
    names: tuple[str, ...]
    """Label names; the index of a name is its class id. Empty for a regression."""
    source: str
    """Origin of the names, a training file or a model, for error sentences."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other label that rows may have -> its name in `names`."""

    def encode(self, batch: Batch) -> pa.Array:
        """Encode the labels of a batch as int64 ids, float32 targets or list<float32> multi-hot.

        Raises:
            UserError: A label is neither in `names` nor in `aliases`.
        """
        import pyarrow as pa

        labels = batch.labels or []
        if self.problem_type == "regression":
            return pa.array(labels, pa.float32())
        ids = {name: index for index, name in enumerate(self.names)}
        ids |= {alias: ids[name] for alias, name in self.aliases.items()}
        try:
            if self.problem_type == "single_label_classification":
                return pa.array([ids[name] for name in labels], pa.int64())
            multi_hot = np.zeros((len(labels), len(self.names)), np.float32)
            for row, names in enumerate(labels):
                multi_hot[row, [ids[name] for name in names]] = 1
        except KeyError:
            raise self._unknown(batch) from None
        offsets = np.arange(len(labels) + 1, dtype=np.int32) * len(self.names)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(multi_hot.ravel()))

    def _unknown(self, batch: Batch) -> UserError:
        known = {*self.names, *self.aliases}
        index, name = next(
            (index, name)
            for index, names in enumerate(_name_lists(batch))
            for name in names
            if name not in known
        )
        return UserError(
            f"{batch.place(index)}: label {name!r} does not occur in {self.source}"
            f"{did_you_mean(name, self.names)}; the labels there are {listing(self.names)}: add "
            "training rows with it or remove the row"
        )


def discover_labels(
    batches: Iterable[Batch], problem_type: ProblemType, order: Sequence[str] = ()
) -> LabelEncoder:
    """Collect the label names of the training file in one pass.

    Names in `order` come first. The other names are sorted as numbers if all names are integers,
    else as strings. So labels 0 to k-1 keep their values as class ids. For a regression, no row is
    read.

    Raises:
        UserError: There are too few or too many names, or the names look like fractions, missing
            values or vectors of zeros and ones.
    """
    if problem_type == "regression":
        return LabelEncoder(problem_type, (), "")
    first_place: dict[str, str] = {}
    rows = pairs = 0
    source = ""
    for batch in batches:
        source = batch.path.name
        for index, names in enumerate(_name_lists(batch)):
            pairs += len(names) == 2
            for name in names:
                if name not in first_place:
                    first_place[name] = batch.place(index)
        rows += len(batch)
        if rows >= _ENOUGH_ROWS:
            _check_count(source, first_place, rows)
    _check_missing(first_place)
    _check_fractions(first_place)
    _check_count(source, first_place, rows)
    if len(first_place) < 2 and problem_type == "single_label_classification":
        raise UserError(
            f"{source}: only one label {next(iter(first_place), '')!r} in {rows} rows, at least "
            "two are needed; add rows with another label, or check --label-column"
        )
    if not first_place:
        raise UserError(
            f"{source}: none of the {rows} rows has a label, at least one label is needed; add "
            "rows with labels, or check --label-column"
        )
    if pairs == rows and first_place.keys() == {"0", "1"}:
        raise UserError(
            f"{source}: every row names both labels 0 and 1, which is how vectors of zeros and ones are "
            "read; list the names of the labels that a row has, such as ['sports', 'politics']"
        )
    is_integer = all(_INTEGER.fullmatch(name) for name in first_place)
    names = sorted(first_place, key=int) if is_integer else sorted(first_place)
    if order:
        rank = {name: place for place, name in enumerate(order)}
        names.sort(key=lambda name: rank.get(name, len(rank)))
    return LabelEncoder(problem_type, tuple(names), source)


def canonical_labels(
    batch: Batch, problem_type: ProblemType | None, *, text_lists: bool = True
) -> list[Any] | None:
    """Convert the raw labels of a batch to names, floats or lists of names, by problem type.

    The result does not depend on the file format: 1, 1.0 and the text "1.0" are one class name, and
    names are stripped of white space. For multi-label data, `a|b` is a list of two names. With
    `text_lists`, a list written as text is read as a list, or refused as the name of a class.
    Without a `problem_type`, the column groups rows: each value is a name, a missing one is EMPTY.
    Returns None without labels.

    Raises:
        UserError: A label is missing, or does not fit the problem type.
    """
    if batch.labels is None:
        return None
    canonical = _CANONICAL[problem_type]
    labels = []
    for index, label in enumerate(batch.labels):
        try:
            labels.append(canonical(label, text_lists))
        except _BadLabelError as error:
            raise UserError(f"{batch.place(index)}: {error}") from None
    return labels


def is_label_list(label: object) -> bool:
    """Return True for a list of label names, also if it is written as text: "['a', 'b']"."""
    if not isinstance(label, str):
        return isinstance(label, list)
    try:
        return _list_in_text(label.strip()) is not None
    except _BadLabelError:  # an array of numpy
        return True


class _BadLabelError(Exception):
    """Unusable label; the message is the error sentence without the place of the row."""


def _class_name(label: object, text_lists: bool) -> str:
    match label:
        case str():
            whole = _WHOLE_FLOAT.fullmatch(name := label.strip())
            if not name:
                raise _BadLabelError("the label is empty; fill it in or remove the row")
            if text_lists and _list_in_text(name) is not None:
                raise _BadLabelError(
                    f"label {name[:60]!r} is a list written as text, expected one name; write the "
                    "name alone, or add --problem-type multi_label_classification"
                )
            return whole[1] if whole else name
        case bool() | int():
            return str(label)
        case float() | Decimal() if math.isfinite(label):
            return str(int(label)) if label == int(label) else str(label)
    raise _unusable(label, "a name or a whole number")


def _group(value: object, _: bool) -> str:
    try:
        return _class_name(value, text_lists=False)
    except _BadLabelError:
        missing = value is None or value != value or not str(value).strip()
        return EMPTY if missing else str(value)


def _target(label: object, _: bool) -> float:
    target = math.nan
    if isinstance(label, str | int | float | Decimal) and not isinstance(label, bool):
        try:
            target = float(label)
        except (ValueError, OverflowError):
            target = math.nan
    if abs(target) <= _LARGEST_TARGET:  # False for NaN
        return target
    raise _unusable(label, "a finite number, because --problem-type is regression")


def _class_names(label: object, text_lists: bool) -> list[str]:
    if isinstance(label, str):
        listed = _list_in_text(label.strip(), expected=True) if text_lists else None
        label = listed if listed is not None else label.split("|") if label.strip() else []
    if not isinstance(label, list):
        raise _unusable(label, "a list of names, because --problem-type is multi-label")
    names = [_class_name(name, text_lists) for name in label]
    if len(set(names)) < len(names):
        raise _BadLabelError(
            f"the label list {listing(names)} names one label twice; list every label of the row "
            "once (names, not a vector of zeros and ones)"
        )
    return names


def _list_in_text(text: str, *, expected: bool = False) -> list[Any] | None:
    """Parse a list written as text, as pandas writes lists into CSV; return None for a plain name.

    "[spam]" is a name, unless lists are `expected`.

    Raises:
        _BadLabelError: The text is an array without commas, as numpy writes it. If lists are
            `expected`, also for text in brackets that is not a list.
    """
    if _ARRAY.fullmatch(text):
        raise _BadLabelError(
            f"label {text[:60]!r} is an array written as text without commas; write lists as "
            "['a', 'b'], or separate the names by |"
        )
    if not text.startswith(("[", "(", "{")):
        return None
    try:
        found = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        if expected and text.startswith("[") and text.endswith("]"):
            raise _BadLabelError(
                f"label {text[:60]!r} is not a list of quoted names; write lists as ['a', 'b'], or "
                "separate the names by |"
            ) from None
        return None
    return list(found) if isinstance(found, list | tuple | set) else None


_CANONICAL: dict[ProblemType | None, Callable[[object, bool], str | float | list[str]]] = {
    "single_label_classification": _class_name,
    "multi_label_classification": _class_names,
    "regression": _target,
    None: _group,
}


def _unusable(label: object, expected: str) -> _BadLabelError:
    if label is None or label == "" or label != label:  # pandas writes a missing value as NaN
        return _BadLabelError(
            f"the label is missing, expected {expected}; fill it in or remove the row"
        )
    hint = ""
    if isinstance(label, list):
        hint = ", or add --problem-type multi_label_classification"
    shown = repr(label) if len(repr(label)) <= 60 else repr(label)[:60] + "..."
    return _BadLabelError(
        f"label {shown} ({type(label).__name__}) found, expected {expected}; "
        f"correct it or remove the row{hint}"
    )


def _name_lists(batch: Batch) -> Iterable[list[str]]:
    for label in batch.labels or []:
        yield label if isinstance(label, list) else [label]


def _check_missing(first_place: dict[str, str]) -> None:
    missing = [name for name in first_place if name.casefold() in _MISSING]
    others = first_place.keys() - missing
    if missing and others and all(_NUMBER.fullmatch(name) for name in others):
        raise UserError(
            f"{first_place[missing[0]]}: label {missing[0]!r} found among numbers, which is how "
            "programs write a missing one; fill it in, remove the row, or give the class another name"
        )


def _check_fractions(first_place: dict[str, str]) -> None:
    if first_place and all(_NUMBER.fullmatch(name) for name in first_place):
        for name, place in first_place.items():
            if not float(name).is_integer():
                raise UserError(
                    f"{place}: label {name} is a number with a fraction, expected names or whole "
                    "numbers; add --problem-type regression to predict numbers, or write the "
                    f"labels as names, such as {f'score {name}'!r}"
                )


def _check_count(source: str, first_place: dict[str, str], rows: int) -> None:
    if len(first_place) > _MANY_LABELS and len(first_place) > rows / 2:
        example = next(iter(first_place))
        raise UserError(
            f"{source}: {len(first_place)} different labels in {rows} rows (such as "
            f"{example[:60]!r}) look like texts or ids, expected a few rows for every label; name "
            "the right column with --label-column"
        )
