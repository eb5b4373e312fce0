"""`trainyard init`: inspect a file of texts and labels, and write a starter config for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from trainyard.config import Flags, TrainConfig
from trainyard.errors import UserError
from trainyard.terminal import say

if TYPE_CHECKING:
    from trainyard.data import Guess

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


def write_starter(config: InitConfig) -> dict[str, Any]:
    """Write the starter config of `config.train_file`.

    Returns:
        The job's JSON: path of the config, rows of each split, problem type, labels, column names,
        and notes on the data.

    Raises:
        UserError: The file cannot be used for training, the config cannot be written, or the
            config exists and `force` is False.
    """
    from trainyard.data import find_splits, guess_columns

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


def _joined_labels(path: Path, guess: "Guess", labels: Sequence[str]) -> list[str]:
    """Return a note if labels of single-label rows look like several names joined by |."""
    joined = [name for name in labels if "|" in name.strip("|")]
    if guess.problem_type is not None or not joined:
        return []
    return [
        f"labels such as {joined[0]!r} may be several labels of one row; to read them so, add "
        f"`problem_type: multi_label_classification` to {path}"
    ]


def starter(source: Path, guess: "Guess", rows: Mapping[str, int], labels: Sequence[str]) -> str:
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
