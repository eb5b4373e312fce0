"""Store data sets of the Hub as Parquet files."""

from pathlib import Path

from trainyard.config import as_file
from trainyard.errors import UserError, one_line


def hub_files(name: str, config_name: str | None) -> tuple[str, str | None]:
    """Load a data set of the Hub; return Parquet files of its train and validation splits.

    `name` may end in `@` and a revision. The second file is None without a validation split.

    Raises:
        UserError: The data set cannot be loaded, or has no split `train`.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        source, _, revision = (name, "", "") if Path(name).exists() else name.partition("@")
        splits = datasets.load_dataset(source, config_name, revision=revision or None)
    # Base classes of the errors of datasets and huggingface_hub; RuntimeError refuses scripts.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data set {name} could not be loaded ({_reason(error)}); check --dataset-name and "
            "--dataset-config-name, or give its files with --train-file and --validation-file"
        ) from error
    if "train" not in splits:
        raise UserError(
            f"data set {name} has no split train, only {', '.join(splits)}; give a file with --train-file"
        )
    validation = splits.get("validation")
    return as_file(splits["train"]), None if validation is None else as_file(validation)


def _reason(error: Exception) -> str:
    """Return the reason on one line, which is the cause if a file of a data set is at fault."""
    import datasets

    found: BaseException = error
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
        found = error.__cause__
    if isinstance(found, datasets.table.CastError):
        columns = (found.requested_column_names, found.table_column_names)
        first, other = (", ".join(names) for names in columns)
        return f"its files have different columns: {first} and, in another file, {other}"
    return one_line(found, 200)
