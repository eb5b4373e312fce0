"""Find the splits of a config: the task, and each split as a stream of canonical record batches.

Canonical columns: `text`, `text_pair` (pairs only), `label` (int64 class, float32 target, or a
list<float32> of 0 and 1 per label).
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainyard.config import DataFlags
from trainyard.data import demo
from trainyard.data import own_files as own_data
from trainyard.data.columns import column_as, readable
from trainyard.data.held_out import Parts, draw_by_class
from trainyard.data.parquet_files import open_parquet
from trainyard.data.text_sketch import TextSketch, sketch_of
from trainyard.errors import UserError, one_line
from trainyard.metrics import with_metrics
from trainyard.storage import file_digest
from trainyard.tasks import Task, check_data_dir, get_task
from trainyard.terminal import stage

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_BATCH = 4_096
TEST = "test"
"""Name of the split of --test-file; the names of splits by --test-share end in `_test`."""
SAMPLE_ROWS = 6
SAMPLE_CHARACTERS = 500
"""Maximum characters of a row that `sample_rows` returns, over both texts."""
NO_LABEL = -1
"""Label of a row whose label is withheld, as in GLUE's test splits."""


@dataclass(frozen=True)
class Split:
    """Split of a data set: a stream of rows that can be restarted, and its fingerprint."""

    name: str
    fingerprint: str
    batches: "Callable[[], Iterator[pa.RecordBatch]]"

    @property
    def digest(self) -> str:
        """Short hash of the fingerprint, for run.json."""
        return hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]

    @functools.cached_property
    def texts(self) -> TextSketch:
        """Sketch of the texts; the first use reads all rows.

        Raises:
            UserError: A row cannot be used.
        """
        stage(f"hashing the texts of {self.name}")
        return sketch_of(self.batches())

    def selection_part(self, test_share: float) -> "Split":
        """Return the split without the share of rows that is set aside for testing."""
        return _divided(self, test_share)[0]


def is_test(split: str) -> bool:
    """Return True for a test split, which is scored once and takes no part in model selection."""
    return split == TEST or split.endswith(f"_{TEST}")


@dataclass(frozen=True)
class Splits:
    """Task with its splits; `notes` are sentences for the user."""

    task: Task
    splits: Sequence[Split]
    notes: Sequence[str] = field(default=())

    @property
    def warnings(self) -> list[str]:
        """Notes about faults of the data, which are recorded with the result."""
        return [note for note in self.notes if note.startswith("warning: ")]


def find_splits(
    config: DataFlags, names: Sequence[str] | None = None, *, labeled: bool = True
) -> Splits:
    """Find the splits `names` of a config, by default the training and evaluation splits.

    Own data ignores `names`: all of its splits are returned. With `labeled=False`, withheld labels
    (-1) are accepted, to predict or inspect the rows.

    Raises:
        UserError: The task or a metric is unknown, `data_dir` would be ignored, a split is missing,
            or a row cannot be used. For a task, `Split.batches` raises the errors about columns and
            rows.
    """
    if config.is_own:
        own = _own_splits(config)
        own = replace(own, task=with_metrics(own.task, *config.further_metrics))
        return _with_tests(_limit(own, config), config.test_rows[1])
    task = with_metrics(get_task(config.task), *config.further_metrics)
    check_data_dir(task, config.data_dir)
    if names is None and task.train_split is None:
        raise UserError(
            f"task '{task.name}' has no training split; train on mnli, whose labels it shares"
        )
    trains = names is None
    names = names or (task.train_split or "", *task.evaluation_splits)
    if task.hub_path is None:
        more = {task.train_split: config.training_rows or 0}
        found = Splits(task, [_demo_split(name, more.get(name, 0)) for name in names])
    elif config.data_dir:
        folder = Path(config.data_dir)
        found = Splits(task, [_local_split(task, name, folder, labeled) for name in names])
    else:
        found = Splits(task, _hub_splits(task, names, labeled))
    found = _limit(found, config)
    return _with_tests(found, config.test_rows[1]) if trains else found


def sample_rows(found: Splits) -> list[dict[str, Any]]:
    """Return up to SAMPLE_ROWS short rows of the first evaluation split, alternating by label.

    A row is {"text", "text_pair" (pairs only), "label"}; labels are names, or regression targets.
    """
    columns = next(found.splits[1].batches()).to_pydict()
    labels = found.task.labels
    seen: dict[str, int] = {}
    rows: list[tuple[int, int, dict[str, Any]]] = []
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        if isinstance(row["label"], list):
            row["label"] = ", ".join(itertools.compress(labels, row["label"]))
        elif labels:
            row["label"] = labels[row["label"]]
        if len(row["text"]) + len(row.get("text_pair", "")) <= SAMPLE_CHARACTERS:
            seen[str(row["label"])] = seen.get(str(row["label"]), -1) + 1
            rows.append((seen[str(row["label"])], len(rows), row))
    return [row for *_, row in sorted(rows, key=lambda row: row[:2])[:SAMPLE_ROWS]]


def _demo_split(name: str, least: int) -> Split:
    rows = max(demo.DEFAULT_ROWS[name], least)

    def batches() -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        generated = iter(demo.generate(name, rows))
        while chunk := list(itertools.islice(generated, ROWS_PER_BATCH)):
            first, second, labels = zip(*chunk, strict=True)
            yield pa.record_batch(
                {"text": first, "text_pair": second, "label": pa.array(labels, pa.int64())}
            )

    return Split(name, f"demo {rows} {demo.VERSION}", batches)


def split_rows(config: DataFlags, name: str) -> int | None:
    """Return the number of rows of a task's split, or None if it is unknown.

    With `data_dir`, the number comes from the split's file; otherwise it is the official number.

    Raises:
        UserError: The task is unknown, or the file is damaged.
    """
    task = get_task(config.task)
    rows = task.rows.get(name)
    if config.data_dir:
        path, rows = split_file(task, name, Path(config.data_dir)), None
        if path.is_file():
            with open_parquet(path) as file:
                rows = file.metadata.num_rows
    limit = config.training_rows if name == task.train_split else None
    return rows if rows is None or limit is None else min(rows, limit)


def split_file(task: Task, name: str, data_dir: Path) -> Path:
    """Return the path of a split's file in a data folder; the file may not exist."""
    return data_dir / task.name / f"{name}.parquet"


def _local_split(task: Task, name: str, data_dir: Path, labeled: bool) -> Split:
    path = split_file(task, name, data_dir)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; --data-dir must hold <task>/<split>.parquet, "
            f"here {task.name}/{name}.parquet"
        )

    def batches() -> "Iterator[pa.RecordBatch]":
        with open_parquet(path) as file:
            batches = file.iter_batches(ROWS_PER_BATCH)
            yield from canonical(task, str(path), batches, labeled=labeled)

    open_parquet(path).close()  # refuse a damaged file before anything starts
    return Split(name, _fingerprint(task, labeled, file_digest(path)), batches)


def _own_splits(config: DataFlags) -> Splits:
    data = own_data.survey(config)
    notes = data.notes
    stream = partial(data.train.encoded, data.encoder)
    if data.validation is not None:
        splits = [
            Split("train", data.fingerprint, stream),
            Split(
                "validation",
                data.fingerprint + data.validation.digest,
                partial(data.validation.encoded, data.encoder),
            ),
        ]
    else:
        version, seed = config.split_rules, config.held_out_seed
        parts = own_data.held_out_rows(data, seed, version)
        drawn = f"seed {seed}" if version == 1 else f"seed {seed}, split version {version}"
        splits = [
            Split(name, f"{data.fingerprint} {name} part, {drawn}", partial(stream, part))
            for name, part in zip(("train", "validation"), parts, strict=True)
        ]
        name = config.dataset_name or data.train.path.name
        notes = (*notes, _held_out_note(config, name, *map(len, parts)))
    if data.test is not None:
        digest = data.fingerprint + data.test.digest
        splits.append(Split(TEST, digest, partial(data.test.encoded, data.encoder)))
    return Splits(data.task, splits, notes)


def _held_out_note(config: DataFlags, file: str, trained: int, held_out: int) -> str:
    flag = "--seed" if config.held_out_seed == config.seed else "--data-seed"
    rows = trained + held_out
    return (
        f"no --validation-file: {held_out:,} of the {rows:,} rows of {file} "
        f"({100 * held_out / rows:.1f} %), drawn by {flag} {config.held_out_seed}, are held out"
    )


def _hub_splits(task: Task, names: Sequence[str], labeled: bool) -> list[Split]:
    import datasets

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(task.hub_path, task.hub_config, revision=task.hub_revision)
    except (
        OSError,
        ValueError,
    ) as error:  # base classes of the errors of datasets and huggingface_hub
        raise UserError(
            f"task '{task.name}' could not be loaded from the Hub ({task.hub_path}): "
            f"{one_line(error, 200)}; connect to it, or give --data-dir with "
            f"{task.name}/{names[0]}.parquet"
        ) from error

    def batches(name: str) -> "Iterator[pa.RecordBatch]":
        rows = found[name].with_format("arrow")
        for table in rows.iter(batch_size=ROWS_PER_BATCH):
            origin = f"{task.hub_path} {name}"
            yield from canonical(task, origin, table.to_batches(), labeled=labeled)

    return [
        Split(
            name,
            _fingerprint(
                task, labeled, f"{task.hub_path} {task.hub_config} {task.hub_revision} {name}"
            ),
            partial(batches, name),
        )
        for name in names
    ]


def _fingerprint(task: Task, labeled: bool, source: str) -> str:
    """Combine the identity of the content (`source`) with the options of reading it."""
    columns = (task.text_columns, task.label_column)
    return repr((source, columns, task.labels, task.problem_type, labeled))


def canonical(
    task: Task, origin: str, batches: "Iterable[pa.RecordBatch]", *, labeled: bool = True
) -> "Iterator[pa.RecordBatch]":
    """Convert a task's columns to canonical columns, and check every label.

    See `find_splits` for `labeled`.

    Raises:
        UserError: A column or a text is missing, a label does not fit the task, or a row cannot be
            read. The message names `origin` and the row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    seen = 0
    for batch in readable(origin, batches):
        cast = partial(column_as, f"{origin} row", seen, batch)
        for column in (*task.text_columns, task.label_column):
            if column not in batch.schema.names:
                raise UserError(
                    f"{origin} has no column '{column}', which task '{task.name}' needs; "
                    f"its columns are {', '.join(batch.schema.names)}"
                )
        if task.labels:
            label = cast(task.label_column, pa.int64(), "a class index")
            good = pc.and_(pc.greater_equal(label, 0), pc.less(label, len(task.labels)))
        else:
            label = cast(task.label_column, pa.float32(), "a number")
            good = pc.and_(pc.is_finite(label), pc.greater_equal(label, 0.0))
        if not labeled:
            good = pc.or_(good, pc.equal(label, NO_LABEL))
        bad = pc.index(pc.fill_null(good, False), False).as_py()
        if bad >= 0:
            raise UserError(
                f"{origin} row {seen + bad}: label {label[bad].as_py()} is not one of task "
                f"'{task.name}' ({', '.join(task.labels) or 'a score of at least 0'}); "
                "test splits have no labels and cannot be trained or evaluated on"
            )
        texts = dict(zip(("text", "text_pair"), task.text_columns, strict=False))
        columns = {name: cast(column, pa.string(), "text") for name, column in texts.items()}
        for name, column in texts.items():
            null = pc.index(columns[name].is_null(), True).as_py()
            if null >= 0:
                raise UserError(
                    f"{origin} row {seen + null}: column '{column}' is null, but every row of task "
                    f"'{task.name}' needs a text; write one (it may be empty) or remove the row"
                )
        yield pa.record_batch({**columns, "label": label})
        seen += batch.num_rows


def selection_and_test(labels: NDArray[Any], share: float) -> Parts:
    """Return the indices of the rows that choose models, and of the rows that are set aside.

    A `share` (0 to 1) of each class is set aside, see `by_class`. Rows of regression and
    multi-label data are drawn at random. The seed is fixed, so the result depends only on the
    arguments: all runs and sweeps on a data set set the same rows aside.

    Args:
        labels: Labels in row order, shape [rows] or [rows, labels].
        share: Share of the rows to set aside.

    Raises:
        UserError: There are too few rows to set any aside.
    """
    parts = draw_by_class(labels, share, seed=0)
    if not len(parts[1]):
        raise UserError(
            f"no test rows can be set aside from {len(labels)} validation rows, because no label has "
            "two of them; give more validation rows, or set none aside: leave out --test-share, or "
            "give a sweep --confirm-seeds 0"
        )
    return parts


def _with_tests(found: Splits, share: float) -> Splits:
    if not share:
        return found
    train, *others = found.splits
    parts = [part for split in others for part in _divided(split, share)]
    return replace(found, splits=[train, *parts])


def _divided(split: Split, share: float) -> list[Split]:
    @functools.cache
    def rows() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        labels = [label for batch in split.batches() for label in batch["label"].to_pylist()]
        return selection_and_test(np.asarray(labels), share)

    def batches(part: int) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        wanted, first = rows()[part], 0
        for batch in split.batches():
            low, high = np.searchsorted(wanted, [first, first + batch.num_rows])
            yield batch.take(pa.array(wanted[low:high] - first))
            first += batch.num_rows

    return [
        Split(name, f"{split.fingerprint} {part}, test share {share:g}", partial(batches, index))
        for index, (name, part) in enumerate(
            ((split.name, "selection part"), (f"{split.name}_{TEST}", "test part"))
        )
    ]


def _limit(found: Splits, config: DataFlags) -> Splits:
    """Keep the first `training_rows` rows of the first split, which is the training split."""
    if (limit := config.training_rows) is None:
        return found
    whole = found.splits[0]

    def batches() -> "Iterator[pa.RecordBatch]":
        left = limit
        for batch in whole.batches():
            yield batch.slice(0, left)
            left -= batch.num_rows
            if left <= 0:
                return

    first = Split(whole.name, f"{whole.fingerprint} first {limit}", batches)
    return replace(found, splits=[first, *found.splits[1:]])
