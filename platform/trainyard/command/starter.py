"""`trainyard init`: inspect a file of texts and labels, and write a starter config for it."""

import codecs
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from trainyard.config import Flags, TrainConfig, flag
from trainyard.errors import UserError
from trainyard.terminal import say

if TYPE_CHECKING:
    from trainyard.data import TextFormat

SAMPLE = 2000
"""Maximum number of rows from which the columns are guessed."""

TEXTS = ("text", "sentence", "sentence1", "body", "content", "review", "message", "comment",
         "question", "premise", "description", "title")  # fmt: skip
SECOND_TEXTS = {"sentence1": "sentence2", "question": "answer", "premise": "hypothesis",
                "question1": "question2", "text_a": "text_b", "text": "text_pair"}  # fmt: skip
LABELS = ("label", "labels", "class", "category", "target", "sentiment", "tag", "tags", "intent",
          "topic", "rating", "score")  # fmt: skip
"""Usual column names, likeliest first; SECOND_TEXTS maps the first text column to the second."""

FEW_CLASSES, MANY_CLASSES = 20, 500
"""Maximum numbers of distinct integers that are class ids: in any file, and if each has two rows on
average. More are regression targets."""

ONE_LABEL = "single_label_classification"


@dataclass(frozen=True, kw_only=True)
class InitConfig(Flags):
    """Inspect a file, and write a commented config that `trainyard train --config` reads.

    The columns are guessed from their names and contents; check them in the written file.
    """

    train_file: Annotated[str, tyro.conf.Positional]
    """.csv, .tsv, .json, .jsonl or .parquet."""
    text_column: str | None = None
    """Column of the text. Default: guessed."""
    label_column: str | None = None
    """Column of the label. Default: guessed."""
    output: str | None = None
    """Config to write. Default: the name of the file, with .yaml."""
    force: bool = False
    """Replace an existing config."""


@dataclass(frozen=True)
class Guess:
    """Guessed columns, problem type and text format of a file; None keeps the default."""

    text: str
    pair: str | None
    label: str
    problem_type: str | None
    encoding: str
    delimiter: str | None
    longest: int
    """Characters per row, 99th percentile; both texts of a pair count."""

    def fields(self) -> dict[str, Any]:
        """Return the guesses as fields of TrainConfig, without those that equal the defaults."""
        found = {
            "text_column": self.text,
            "text_pair_column": self.pair,
            "label_column": self.label,
            "problem_type": self.problem_type,
            "delimiter": self.delimiter,
            "encoding": self.encoding,
        }
        usual = {**{name: getattr(TrainConfig, name) for name in found}, "text_column": "text"}
        return {name: value for name, value in found.items() if value != usual[name]}


def write_starter(config: InitConfig) -> dict[str, Any]:
    """Write the starter config of `config.train_file`.

    Returns:
        The job's JSON: path of the config, rows of each split, problem type, labels, column names,
        and notes on the data.

    Raises:
        UserError: The file cannot be used for training, the config cannot be written, or the
            config exists and `force` is False.
    """
    from trainyard.data import find_splits

    source = Path(config.train_file)
    path = Path(config.output or f"{source.stem}.yaml")
    if path.exists() and not config.force:
        raise UserError(f"{path} exists; give another --output, or --force to replace it")
    guess = guess_columns(source, config.text_column, config.label_column)
    run = TrainConfig(train_file=str(source), **guess.fields())
    splits = find_splits(run)
    labels = splits.task.labels or ()
    rows = {split.name: sum(len(b) for b in split.batches()) for split in splits.splits}
    try:
        path.write_text(starter(source, guess, rows, labels), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--output {path} cannot be written ({error.strerror}); give another file"
        ) from error
    notes = [*splits.notes, *_joined_labels(path, guess, labels)]
    for note in notes:
        say(note)
    return {
        "job": "init",
        "config": str(path),
        "rows": rows,
        "problem_type": guess.problem_type or ONE_LABEL,
        "labels": list(labels),
        "notes": notes,
        **{f"{name}_column": value for name, value in
           (("text", guess.text), ("text_pair", guess.pair), ("label", guess.label))},
    }  # fmt: skip


def _joined_labels(path: Path, guess: Guess, labels: Sequence[str]) -> list[str]:
    """Return a note if labels of single-label rows look like several names joined by |."""
    joined = [name for name in labels if "|" in name.strip("|")]
    if guess.problem_type is not None or not joined:
        return []
    return [
        f"labels such as {joined[0]!r} may be several labels of one row; to read them so, add "
        f"`problem_type: multi_label_classification` to {path}"
    ]


def starter(source: Path, guess: Guess, rows: Mapping[str, int], labels: Sequence[str]) -> str:
    """Build the YAML text of a config with guessed columns and settings for fast training.

    Args:
        source: File of the training rows.
        guess: Guessed columns and format.
        rows: Number of rows by split.
        labels: Names of the labels; empty for regression.
    """
    counts = ", ".join(f"{count} rows of {name}" for name, count in rows.items())
    shown = _comment(", ".join(labels[:12]) + (" …" if len(labels) > 12 else ""))
    data = "".join(f"{name}: {_yaml(value)}\n" for name, value in guess.fields().items())
    if guess.problem_type is None:
        data += "# problem_type: regression                    # or multi_label_classification\n"
    length = next((size for size in (128, 256) if guess.longest / 3 < size), 512)
    few = rows["train"] < 2000
    return f"""\
# trainyard train --config THIS_FILE          trainyard train --help explains every line
# {counts}{f"; labels: {shown}" if labels else ""}
train_file: {_yaml(str(source))}
# validation_file: more.csv                   # else a random tenth of the rows is held out
{data}
# The model: a Hub id such as microsoft/deberta-v3-small, or a folder.
# model_name_or_path: distilbert-base-uncased # default: MiniLM, from its Python package
max_length: {length}                               # tokens per row; longer rows are truncated

# Faster than the defaults, which are those of transformers.
learning_rate: 1e-4
train_batch_size: 32
per_device_train_batch_size: 16
num_train_epochs: {5 if few else 3}
# mixed_precision: bf16                       # on processors and GPUs that compute in it
# use_gpu: true

run_name: {_yaml(_run_name(source))}
# early_stopping_patience: 2
# seed: 42
"""


def _yaml(text: str) -> str:
    """Return the text in double quotes, as YAML reads it."""
    import yaml

    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.removesuffix("\n")


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _run_name(source: Path) -> str:
    kept = "".join(char if char.isascii() and char.isalnum() else "-" for char in source.stem)
    return kept.strip("-") or "own"


def guess_columns(path: Path, text: str | None = None, label: str | None = None) -> Guess:
    """Guess the columns of a file by their names, else by their contents.

    Without a usual name, the label is the column with the fewest distinct values, at least two. The
    text is then the column with the most characters.

    Args:
        path: File of texts and labels.
        text: Column of the text; None guesses it.
        label: Column of the label; None guesses it.

    Raises:
        UserError: The file cannot be read or lacks a given column, no column holds texts, or none
            is left for the label.
    """
    columns, encoding, delimiter = _sample(path)
    _check_columns(path, columns, text_column=text, label_column=label)
    names = {name.strip().lower(): name for name in columns}
    texts = [name for name in columns if any(isinstance(value, str) for value in columns[name])]
    label = label or next((names[n] for n in LABELS if names.get(n, text) != text), None)
    text = text or next((names[n] for n in TEXTS if names.get(n, label) != label), None)
    if label is None:
        rest = [name for name in reversed(columns) if name != text]  # the label is rarely the first
        counts = {name: _distinct(columns[name]) for name in rest}
        label = min((name for name in rest if counts[name] > 1), key=counts.get, default=None)  # type: ignore[arg-type]
    if text is None:
        rest = [name for name in texts if name != label]
        text = max(rest, key=lambda name: _length(columns[name]), default=None)
    if text is None or label is None:
        listed = ", ".join(map(repr, columns))
        raise UserError(
            f"{path} has the columns {listed}; expected one of texts and one of labels with at least "
            "two values; name them with --text-column and --label-column"
        )
    pair = names.get(SECOND_TEXTS.get(text.strip().lower(), ""))
    lengths = sorted(
        sum(len(str(columns[name][row])) for name in (text, pair) if name)
        for row in range(len(columns[text]))
    )
    return Guess(
        text,
        pair,
        label,
        _problem_type(columns[label]),
        encoding,
        delimiter,
        lengths[int(0.99 * (len(lengths) - 1))],
    )


def _check_columns(path: Path, columns: Mapping[str, Any], **given: str | None) -> None:
    from trainyard.data import did_you_mean, listing

    for field, name in given.items():
        if name is not None and name not in columns:
            raise UserError(
                f"{flag(field)} is {name!r}, but the columns of {path} are "
                f"{listing(map(repr, columns))}{did_you_mean(name, list(columns))}; give one of them"
            )


def _distinct(values: Sequence[Any]) -> int:
    return len({str(value) for value in values if value not in (None, "")})


def _length(values: Sequence[Any]) -> int:
    return sum(len(str(value)) for value in values)


def _problem_type(values: Sequence[Any]) -> str | None:
    from trainyard.data import is_label_list

    if any(map(is_label_list, values)):
        return "multi_label_classification"
    try:
        numbers = {float(value) for value in values}
    except (TypeError, ValueError):
        return None
    whole = all(number.is_integer() for number in numbers)
    most = FEW_CLASSES if len(numbers) > len(values) / 2 else MANY_CLASSES
    return None if whole and len(numbers) <= most else "regression"


def _sample(path: Path) -> tuple[dict[str, list[Any]], str, str | None]:
    """Read the first rows of a file, at most SAMPLE.

    Returns:
        Values by column, the encoding, and the delimiter; None for the default of the extension.
    """
    from trainyard.data import AS_JSON, DELIMITERS, TextFormat, check_file, read_rows

    check_file(path)
    found = TextFormat()
    if path.suffix.lower() in DELIMITERS:
        found = _text_format(path)
    elif path.suffix.lower() in (".json", ".jsonl"):
        found = TextFormat(encoding=_decoded(path)[1])
    batches = read_rows(
        path, (), None, "single_label_classification", text_format=found, others=None
    )
    rows = next(batches).others.slice(0, SAMPLE)  # type: ignore[union-attr]
    columns = {
        field.name: [
            json.loads(value) if field.metadata == AS_JSON and value is not None else value
            for value in rows[field.name].to_pylist()
        ]
        for field in rows.schema
    }
    return columns, found.encoding, found.delimiter


def _text_format(path: Path) -> "TextFormat":
    from trainyard.data import DELIMITERS, TextFormat

    text, encoding = _decoded(path)
    usual = DELIMITERS[path.suffix.lower()]
    head = text.partition("\n")[0]
    if head.removeprefix("\ufeff").startswith("sep="):
        raise UserError(
            f"{path} starts with the line {head.strip()}, which only Excel reads; remove this line, and "
            "init finds the separator"
        )
    head = re.sub('"[^"]*"', "", head)  # a quoted name may contain any of them
    delimiter = max((usual, ",", ";", "\t", "|"), key=head.count)
    return TextFormat(None if delimiter == usual else delimiter, encoding)


def _decoded(path: Path) -> tuple[str, str]:
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8", "cp1252"):
        try:
            return content.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1"), "latin-1"
