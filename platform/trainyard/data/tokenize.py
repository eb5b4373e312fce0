"""Tokenize splits into a fingerprinted cache that later runs and trials share.

    split ──► raw Parquet ──► tokenize, in this process or with Ray Data, in order ──► TokenTable

The training loop gathers the rows of its plan from the memory-mapped table. A stream of planned
batches through Ray Data would delay the first step, and would occupy CPUs during training.
"""

import contextlib
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainyard.config import ModelFlags
from trainyard.data.held_out import text_hashes
from trainyard.data.splits import Split, Splits, is_test
from trainyard.data.text_sketch import TextSketch, text_columns
from trainyard.data.token_table import TableWriter, TokenTable
from trainyard.errors import UserError
from trainyard.models import base_digests, locate_model, model_revision, vocabulary_size
from trainyard.storage import RunFolder, sync_tree, write_atomic
from trainyard.terminal import quieted, say

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
"""Part of every fingerprint; raise it if the tokens of a table change."""
ROWS_PER_FILE = 50_000
ROWS_PER_TASK = 4_096
ROWS_HERE = 131_072
"""Maximum rows tokenized in the driver process. Its threads tokenize this number before Ray Data's
workers have started and imported transformers."""
FLAT_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Environment of Ray Data's workers. Arrow's default allocator keeps memory of ended threads."""
ABANDONED_SECONDS = 24 * 3600
"""Seconds without a write after which a scratch folder belongs to a killed process."""

_fetched: dict[str, Any] = {}
"""Tokenizers of a Ray Data worker process, by the hex id of their object reference."""


@dataclass(frozen=True)
class PreparedData:
    """Tokenized splits of one data set: folders of `TokenTable`, by split name."""

    fingerprint: str
    folders: Mapping[str, Path]
    sources: Mapping[str, str]
    """Digest of each split before tokenization, see `Split.digest`."""
    model: str
    """Name of the tokenizer's model, valid in every process; workers load its weights."""
    model_revision: str | None = None
    """Commit of a model on the Hub, from which tokenizer and weights are loaded; else None."""
    base_digests: Mapping[str, str | None] = field(default_factory=dict)
    """Digests of a local model's files, by their names in run.json."""
    padding_side: str = "right"
    """Value of the tokenizer's `padding_side`."""
    vocabulary: int | None = None
    """Minimum number of token embeddings; None keeps the model's number."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Encoded `TextSketch` of each split that is not set aside for testing."""

    def table(self, split: str) -> TokenTable:
        return TokenTable(self.folders[split])


def prepare(
    splits: Splits, tokenizer: Any, config: ModelFlags, cache: Path, run: RunFolder | None = None
) -> PreparedData:
    """Tokenize `splits` into `cache`, unless their tables exist.

    A `run` in a bucket also looks for tables in the bucket, because other nodes do not see `cache`.
    Two runs can prepare the same data at the same time: each writes its own folder, and the first
    rename wins.

    Raises:
        UserError: A split has no rows or no tokens, a row cannot be used, or the bucket cannot be read.
    """
    recipe = json.dumps(
        [FORMAT, config.max_length, hashlib.sha256(_serialized(tokenizer)).hexdigest()]
    )
    run = run or RunFolder(cache)
    folders, digest = {}, hashlib.sha256(recipe.encode())
    for split in splits.splits:
        key = hashlib.sha256(f"{recipe}{split.fingerprint}".encode()).hexdigest()[:24]
        digest.update(key.encode())
        folders[split.name] = cache / key
        if not run.find_table(folders[split.name]):
            _build(split, tokenizer, config, folders[split.name], run.seen_everywhere)
    sources = {split.name: split.digest for split in splits.splits}
    texts = {
        split.name: _store_sketch(split, folders[split.name], cache) for split in splits.splits
    }
    model = config.model_name_or_path
    return PreparedData(
        digest.hexdigest()[:16],
        folders,
        sources,
        model=locate_model(model),
        model_revision=model_revision(model),
        base_digests=base_digests(model),
        padding_side=tokenizer.padding_side,
        vocabulary=vocabulary_size(tokenizer) if config.grows_vocabulary else None,
        texts={name: text for name, text in texts.items() if not is_test(name)},
    )


def stored_sketch(split: Split, cache: Path) -> TextSketch:
    """Return the sketch of a split's texts that `prepare` stored in `cache`; else read all rows.

    Raises:
        UserError: A row cannot be used.
    """
    with contextlib.suppress(FileNotFoundError, ValueError):
        return TextSketch.decoded(_sketch_file(split, cache).read_text())
    return split.texts


def _sketch_file(split: Split, cache: Path) -> Path:
    """Return the path of a split's sketch, which tables of all tokenizers and lengths share.

    It is next to the tables, because the bucket has hashes of all files of a table.
    """
    return cache / f"{split.digest}.texts"


def _store_sketch(split: Split, table: Path, cache: Path) -> str:
    # Tables of earlier versions have no sketch.
    encoded = TokenTable(table).info.get("texts") or stored_sketch(split, cache).encoded()
    if not (file := _sketch_file(split, cache)).exists():
        write_atomic(file, encoded)
    return str(encoded)


def _serialized(tokenizer: Any) -> bytes:
    """Serialize all state of a tokenizer that changes its tokens or the table's columns."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    inputs = [tokenizer.pad_token_id, *tokenizer.model_input_names]
    # The state of the backend does not include this option.
    as_text = "split_special_tokens" if tokenizer.split_special_tokens else ""
    return f"{type(tokenizer).__name__}{inputs}{state}{as_text}".encode()


def _build(
    split: Split, tokenizer: Any, config: ModelFlags, folder: Path, seen_everywhere: bool
) -> None:
    _clear_abandoned(folder.parent)
    scratch = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        _write_raw(split, scratch / "raw")
        files = sorted((scratch / "raw").iterdir())
        by_ray, reason = _place(_rows(files), config.tokenize_on)
        say(f"tokenizing {split.name} {'by Ray Data' if by_ray else 'in this process'}: {reason}")
        batches = (
            _by_ray(files, tokenizer, config.max_length, seen_everywhere)
            if by_ray
            else _here(files, tokenizer, config.max_length)
        )
        _write(batches, scratch / "table", tokenizer, pair=_is_pair(files[0]))
        if not (scratch / "table" / "ids.bin").stat().st_size:
            raise UserError(
                f"split '{split.name}': no text has a token, expected at least one that is not empty; "
                "check the file and --text-column"
            )
        sync_tree(scratch / "table")  # an existing table is never verified
        try:
            (scratch / "table").rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another run was first, with an equal table
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _clear_abandoned(cache: Path) -> None:
    for scratch in cache.glob(".*-*"):
        with contextlib.suppress(OSError):  # another process may be clearing it too
            newest = max(path.stat().st_mtime for path in (scratch, *scratch.rglob("*")))
            if time.time() - newest > ABANDONED_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)


def _write_raw(split: Split, folder: Path) -> None:
    """Stream the split into Parquet files of about `ROWS_PER_FILE` rows, named in row order.

    Raises:
        UserError: The split has no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    writer, rows, files = None, 0, 0
    for batch in split.batches():
        if writer is None or rows >= ROWS_PER_FILE:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(folder / f"{files:06d}.parquet", batch.schema)
            rows, files = 0, files + 1
        writer.write_table(pa.Table.from_batches([batch]), row_group_size=ROWS_PER_TASK)
        rows += batch.num_rows
    if writer is None:
        raise UserError(f"split '{split.name}' has no rows; give one that has")
    writer.close()


def _rows(files: list[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(int(pq.read_metadata(path).num_rows) for path in files)


def _is_pair(file: Path) -> bool:
    import pyarrow.parquet as pq

    return "text_pair" in pq.read_schema(file).names


def _place(rows: int, wanted: str | None) -> tuple[bool, str]:
    """Return (True if Ray Data tokenizes a split of `rows` rows, reason)."""
    if wanted is not None:
        return wanted == "ray", f"--tokenize-on {wanted}"
    if rows > ROWS_HERE:
        return True, f"it has more than {ROWS_HERE:,} rows"
    if (nodes := _nodes()) > 1:
        return True, f"the cluster has {nodes} nodes"
    return False, f"it has at most {ROWS_HERE:,} rows, and there is one node"


def _nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1


def _write(batches: "Iterator[pa.Table]", folder: Path, tokenizer: Any, *, pair: bool) -> None:
    """Write tokenized batches into `folder` as a `TokenTable`, with facts on the rows as its info."""
    types = "token_type_ids" in tokenizer.model_input_names
    truncated = lost = 0
    texts = TextSketch()
    with TableWriter(folder, types=types) as writer:
        for batch in batches:
            writer.append(
                _flat(batch["input_ids"]),
                _flat(batch["token_type_ids"]) if types else None,
                batch["length"].to_numpy(),
                _labels(batch["label"]),
            )
            truncated += int((batch["lost"].to_numpy() > 0).sum())
            lost += int(batch["lost"].to_numpy().sum())
            texts = texts.with_hashes(batch["text_hash"].to_numpy())
        writer.close(
            {
                "pad_id": tokenizer.pad_token_id,
                "special_tokens": tokenizer.num_special_tokens_to_add(pair=pair),
                "truncated_rows": truncated,
                "lost_tokens": lost,
                "texts": texts.encoded(),
            }
        )


def _here(files: list[Path], tokenizer: Any, max_length: int) -> "Iterator[pa.Table]":
    """Tokenize in the threads of this process; yield batches in row order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_PER_TASK):
            yield tokenize(tokenizer, max_length, pa.Table.from_batches([batch]))


def _by_ray(
    files: list[Path], tokenizer: Any, max_length: int, seen_everywhere: bool
) -> "Iterator[pa.Table]":
    """Tokenize with Ray Data; yield batches in row order."""
    import ray

    environment = {"env_vars": FLAT_MEMORY}
    where: dict[str, Any] = {}
    if not seen_everywhere:  # read by this node, tokenized by all
        this_node = ray.get_runtime_context().get_node_id()
        where = {"label_selector": {"ray.io/node-id": this_node}, "num_cpus": 0}
    with quiet_ray_data():
        yield from (
            ray.data.from_items([str(path) for path in files], override_num_blocks=len(files))
            .map_batches(_read_in_task, batch_size=None, runtime_env=environment, **where)
            .map_batches(
                partial(_tokenize_in_task, ray.put(tokenizer), max_length, ROWS_PER_TASK),
                batch_format="pyarrow",
                batch_size=None,  # a number would put that many files into one task
                zero_copy_batch=True,
                runtime_env=environment,
            )
            .iter_batches(batch_format="pyarrow", batch_size=None)
        )


def _read_in_task(batch: dict[str, Any]) -> "Iterator[pa.Table]":
    # ray.data.read_parquet packs files into one task, up to a million rows: one core would tokenize
    # all of its rows, and the object store would hold them at once.
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in batch["item"]:
        for rows in pq.ParquetFile(path).iter_batches(ROWS_PER_TASK):
            yield pa.Table.from_batches([rows])


def _tokenize_in_task(
    tokenizer_ref: Any, max_length: int, at_once: int, batch: "pa.Table"
) -> "Iterator[pa.Table]":
    for start in range(0, batch.num_rows, at_once):
        yield tokenize(_load(tokenizer_ref), max_length, batch.slice(start, at_once))


def tokenize(tokenizer: Any, max_length: int, batch: "pa.Table") -> "pa.Table":
    """Tokenize the columns `text` and `text_pair` (pairs only), up to `max_length` tokens per row.

    Returns the columns `input_ids` (list<int32>), `length`, `lost`, `text_hash` (see `text_hashes`)
    and `label`, and `token_type_ids` (list<uint8>) if the model has them. `lost` counts the tokens
    that truncation removed from a row, from the longer text first.
    """
    import pyarrow as pa

    texts = text_columns(batch)
    encoded = tokenizer(*texts, truncation="longest_first", max_length=max_length)
    lengths = np.fromiter(map(len, encoded["input_ids"]), np.int32)
    lost = np.zeros(len(lengths), np.int32)
    full = np.flatnonzero(lengths >= max_length)
    if len(full):  # only a row of full length can have lost tokens
        whole = tokenizer(
            *([column[i] for i in full] for column in texts), truncation=False, verbose=False
        )
        lost[full] = np.fromiter(map(len, whole["input_ids"]), np.int32) - lengths[full]
    columns = {
        "input_ids": pa.array(encoded["input_ids"], pa.list_(pa.int32())),
        "length": pa.array(lengths),
        "lost": pa.array(lost),
        "text_hash": pa.array(text_hashes(*texts)),
        "label": batch["label"],
    }
    if "token_type_ids" in tokenizer.model_input_names:
        columns["token_type_ids"] = pa.array(encoded["token_type_ids"], pa.list_(pa.uint8()))
    return pa.table(columns)


def _load(tokenizer_ref: Any) -> Any:
    """Fetch the tokenizer once per process.

    The object reference is not stored, because Ray does not end an idle process that holds one.
    """
    import ray

    key = tokenizer_ref.hex()
    if key not in _fetched:
        _fetched[key] = ray.get(tokenizer_ref)
    return _fetched[key]


def _flat(column: Any) -> Any:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _labels(column: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_list(column.type):
        return _flat(column).reshape(len(column), -1)
    return column.to_numpy()


@contextlib.contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Make Ray Data keep the row order and hide progress bars; restore its context on exit."""
    import ray

    context = ray.data.DataContext.get_current()
    before = (context.enable_progress_bars, context.execution_options.preserve_order)
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    try:
        with quieted("ray.data"):
            yield
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = before
