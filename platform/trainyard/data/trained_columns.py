"""Default columns and delimiter of a file for a fine-tuned model: those of its training."""

from dataclasses import dataclass
from pathlib import Path

from trainyard.data.columns import TextFormat, did_you_mean
from trainyard.data.files import check_file, read_rows
from trainyard.data.text_files import DELIMITERS, first_line
from trainyard.errors import DamagedRun, UserError
from trainyard.storage import trained_config
from trainyard.tasks import TASKS

TEXT, LABEL = "text", "label"
"""Columns of a file without flags, for a model without a record of its training."""


@dataclass(frozen=True)
class TrainedColumns:
    """Columns of the data that a model was trained on."""

    run: str
    """Name of the run or sweep."""
    texts: tuple[str, ...]
    """Column of the text, and for pairs that of the second text."""
    label: str
    delimiter: str | None = None
    """Delimiter of the training file; None for the usual one of its kind."""
    kinds: frozenset[str] = frozenset()
    """Endings of the training files' names, in lower case."""


def trained_columns(model: str) -> TrainedColumns | None:
    """Read the columns from the record of the run or sweep that exported the folder `model`.

    Returns None for a model without such a record, for example on the Hub.

    Raises:
        UserError: The record is damaged.
    """
    folder = Path(model)
    try:
        config = trained_config(folder)
    except DamagedRun as error:
        raise UserError(
            f"{error.problem} and does not say on which columns model {model} was trained; move it away, "
            "and give --text-column"
        ) from error
    texts: tuple[str | None, ...]
    if config.get("train_file") or config.get("dataset_name"):
        texts = (config.get("text_column") or TEXT, config.get("text_pair_column"))
        label = config.get("label_column") or LABEL
    elif (task := TASKS.get(str(config.get("task")))) is not None:
        texts, label = task.text_columns, task.label_column
    else:
        return None
    return TrainedColumns(
        folder.parent.name,
        tuple(str(name) for name in texts if name),
        label,
        config.get("delimiter"),
        frozenset(
            Path(name).suffix.lower() for name in str(config.get("train_file") or "").split(",")
        ),
    )


def columns_of(file: str, text_format: TextFormat) -> list[str]:
    """Return the names of the columns in the first rows of a file, without repeated names.

    Raises:
        UserError: The file cannot be used.
    """
    rows = read_rows(file, (), None, None, keep_bad_rows=True, text_format=text_format, others=None)
    others = next(rows).others
    return [] if others is None else others.column_names


def default_delimiter(
    file: Path, text_format: TextFormat, trained: TrainedColumns | None
) -> str | None:
    """Return the delimiter of a file: the given one, else that of the model's training.

    The latter applies to files of the same kind, unless their first line has only the usual one.

    Raises:
        UserError: The file cannot be read.
    """
    kind = file.suffix.lower()
    if text_format.delimiter or trained is None or kind not in trained.kinds & DELIMITERS.keys():
        return text_format.delimiter
    check_file(file)
    head = first_line(file, text_format.encoding)
    usable = trained.delimiter and (trained.delimiter in head or DELIMITERS[kind] not in head)
    return trained.delimiter if usable else None


def default_texts(
    file: str,
    found: list[str],
    given: tuple[str | None, str | None],
    trained: TrainedColumns | None,
) -> tuple[str, ...]:
    """Return the text columns to read: the given ones, else those that the model was trained on.

    Args:
        file: Name of the file, for the error.
        found: Columns of the file.
        given: Values of --text-column and --text-pair-column.
        trained: Columns of the model's training; None if unknown.

    Raises:
        UserError: The model was trained on pairs, and the file has no column of the second text.
    """
    text, pair = given
    names = (TEXT,) if trained is None else trained.texts
    first = text or next((name for name in (names[0], TEXT) if name in found), names[0])
    if trained is not None and len(names) > 1 and pair is None:
        pair = names[1]
        if pair not in found:
            raise UserError(
                f"the model of {trained.run} was trained on pairs of texts, and {file} has no column "
                f"{pair!r}{did_you_mean(pair, found)}; name the column of the second text with "
                "--text-pair-column"
            )
    return (first,) if pair is None else (first, pair)
