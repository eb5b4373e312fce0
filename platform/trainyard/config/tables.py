"""Files from the values of a Python session: tables, paths, and lists of paths."""

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainyard.errors import UserError

SOURCES = ("train_file", "validation_file", "test_file", "input_file")
"""Fields of configs that name data files."""


def with_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """Replace tables and lists of paths among the keywords of a config by paths, see `as_path`.

    Raises:
        UserError: A source of data is neither a path nor a table.
    """
    return {
        name: as_path(value) if name in SOURCES and value is not None else value
        for name, value in given.items()
    }


def as_file(rows: Any) -> str:
    """Store a table as Parquet and return its path, as configs do for fields such as `train_file`.

    The file is in the cache folder of `datasets`. Its name is a hash of its content, so runs on
    equal tables are the same run.

    Args:
        rows: pandas or polars DataFrame, Arrow table, or `datasets.Dataset`.

    Raises:
        UserError: `rows` is of another type.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(rows, datasets.Dataset):
        table = rows.with_format("arrow")[:]
        table = table.replace_schema_metadata(rows.features.arrow_schema.metadata)
    elif isinstance(rows, pa.Table):
        table = rows
    elif hasattr(rows, "to_arrow"):  # polars
        table = rows.to_arrow()
    elif hasattr(rows, "columns") and hasattr(rows, "dtypes"):
        table = pa.Table.from_pandas(rows, preserve_index=False)
    else:
        raise UserError(
            f"{type(rows).__name__} is not a table; give a pandas or polars DataFrame, an Arrow table or a "
            "datasets.Dataset"
        )
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "trainyard"
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".table.parquet.{uuid.uuid4().hex}.tmp"
    pq.write_table(table, scratch)
    path = folder / f"{hashlib.sha256(scratch.read_bytes()).hexdigest()[:16]}.parquet"
    scratch.replace(path)
    return str(path)


def as_path(source: Any) -> str:
    """Return the path of a file, the paths of several files separated by commas, or `as_file`.

    Args:
        source: Path, list of paths, or table.

    Raises:
        UserError: `source` is of another type, or one of several paths has a comma.
    """
    if isinstance(source, str | Path):
        return str(source)
    if not isinstance(source, list | tuple) or not source:
        return as_file(source)
    if not all(isinstance(path, str | Path) for path in source):
        raise UserError(
            f"a list of {type(source[0]).__name__} names no data; give a list of paths, or one table"
        )
    paths = [str(path) for path in source]
    for path in paths if len(paths) > 1 else ():
        if "," in path:
            raise UserError(f"the path {path} of a list has a comma; rename the file")
    return ",".join(paths)
