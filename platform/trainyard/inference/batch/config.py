"""Flags of `trainyard predict`."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from trainyard.config import PLACE_FIELDS, FileFlags, WorkerFlags, added
from trainyard.data import (
    TEXT,
    TextFormat,
    columns_of,
    default_delimiter,
    default_texts,
    files_of,
    trained_columns,
)
from trainyard.errors import UserError
from trainyard.inference.predictor import BATCH_TOKENS, Predictor
from trainyard.inference.registry import PREDICTORS, task_of
from trainyard.models import MODEL_FILES, Dtype, EngineName, locate_model, resolve_model
from trainyard.storage import file_digest

OUTPUTS = (".csv", ".jsonl", ".parquet")
"""Name endings of the supported output files."""


PARTS_VERSION = 2
"""Version of the columns in a job's parts; parts of another version are not reused."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(FileFlags, WorkerFlags):
    """Predict every row of one or several files with a fine-tuned model.

    The output has each row of the input exactly once, in the order of the files and of their rows.
    After an interruption, the same command resumes the job.
    """

    not_in_identity: ClassVar[tuple[str, ...]] = (*PLACE_FIELDS, "output_file")

    model_name_or_path: str
    """Folder of a run or of a model, a Hub id, or package:NAME/FOLDER."""
    revision: str | None = None
    """Commit, tag or branch of a model on the Hub; resolved to a commit once for the job."""
    input_file: str
    """.csv, .tsv, .json, .jsonl or .parquet; a pattern such as 'new-*.csv', or several of them separated by
    commas. The output of several files has a column `file`."""
    output_file: str
    """.csv, .jsonl or .parquet; an existing file is replaced when all rows are predicted."""
    keep_columns: tuple[str, ...] | None = added(None, before=None)
    """Columns of the input that the output keeps. Default: all whose name occurs once."""
    model_task: str | None = None
    """Task name as on the Hub. Default: the task of the model's architecture."""
    text_column: str | None = None
    """Column of the text (question-answering: of the question). Default: the one that the model's run was
    trained on, if the file has it, else text."""
    text_pair_column: str | None = None
    """Column of the second text of a pair (question-answering: of the context). Default: the one that the
    model's run was trained on."""
    parameters: str = "{}"
    """Task parameters as in a request, a JSON object: '{"candidate_labels": ["a", "b"]}'."""
    truncation: bool = True
    """Truncate texts that are too long, and count them; with --no-truncation such rows are errors."""
    threshold: float = 0.5
    """Multi-label: minimum score of the labels that apply."""
    label_thresholds: Literal["0.5", "fitted"] = added("fitted", before="fitted")
    """Multi-label: `fitted` uses the thresholds stored with the model, if any; 0.5 ignores them. A
    --threshold other than 0.5 replaces both."""
    batch_tokens: int = BATCH_TOKENS
    """Maximum padded tokens per forward pass."""
    engine: EngineName = "torch"
    """Engine of the forward passes; openvino runs on CPUs, see `trainyard engine`."""
    dtype: Dtype = "float32"
    """Number format of the forward passes."""
    num_workers: int = 1
    """Worker processes on Ray. With one and no --address, the job's process predicts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.output_file).suffix not in OUTPUTS:
            raise UserError(
                f"--output-file {self.output_file} must end in {', '.join(OUTPUTS)}; rename it"
            )
        if self.model_task is not None and self.model_task not in PREDICTORS:
            raise UserError(
                f"--model-task {self.model_task} is not known; use one of {', '.join(PREDICTORS)}"
            )
        if not isinstance(self.request, dict):
            raise UserError(f"--parameters is {self.parameters}; it must be a JSON object")

    @property
    def files(self) -> tuple[Path, ...]:
        """Input files in order.

        Raises:
            UserError: A pattern of `input_file` matches no file.
        """
        return files_of(self.input_file)

    @property
    def text_columns(self) -> list[str]:
        return [name for name in (self.text_column or TEXT, self.text_pair_column) if name]

    @property
    def request(self) -> Any:
        """Parsed JSON of `parameters`.

        Raises:
            UserError: `parameters` is invalid JSON.
        """
        try:
            return json.loads(self.parameters)
        except ValueError as error:
            raise UserError(
                f"--parameters is not valid JSON ({error}); quote it with '…'"
            ) from error

    def predictor(self) -> Predictor:
        task = self.model_task or task_of(self.model_name_or_path, self.revision)
        device = "cuda" if self.use_gpu else "cpu"
        return PREDICTORS[task].load(
            self.model_name_or_path,
            engine=self.engine,
            dtype=self.dtype,
            device=device,
            revision=self.revision,
        )

    def located(self) -> Self:
        """Return a copy with the model's absolute path, for another working directory."""
        return replace(self, model_name_or_path=locate_model(self.model_name_or_path))

    def pinned(self) -> Self:
        """Return a copy whose `revision` is the commit that it names on the Hub now.

        A local model has no commit, and keeps its `revision`.
        """
        from transformers.utils import cached_file, extract_commit_hash

        model = resolve_model(self.model_name_or_path)
        try:
            file = cached_file(model, "config.json", revision=self.revision)
        except OSError:  # loading the model reports the error
            return self
        return replace(self, revision=extract_commit_hash(file, None) or self.revision)

    def with_columns(self) -> Self:
        """Return a copy whose text columns and delimiter are set: as given, else as in training.

        Raises:
            UserError: The model was trained on pairs, and the file has no column of the second
                text. Or the file or the record of the run cannot be read.
        """
        trained = None
        if self.model_task in (None, "text-classification"):
            trained = trained_columns(resolve_model(self.model_name_or_path))
        given = (self.text_column, self.text_pair_column)
        file = self.files[0]
        delimiter = default_delimiter(file, TextFormat(self.delimiter, self.encoding), trained)
        found = [TEXT]
        if trained and not all(given):
            found = columns_of(str(file), TextFormat(delimiter, self.encoding))
        text, *pair = default_texts(str(file), found, given, trained)
        return replace(
            self,
            text_column=text,
            text_pair_column=pair[0] if pair else None,
            delimiter=delimiter,
        )

    def identity(self) -> str:
        """Return a SHA-256, cut to 16 digits, of flags, input files and the files of a local model.

        For a model on the Hub, its commit stands for its files, see `pinned`.
        """
        model = Path(resolve_model(self.model_name_or_path))
        files = sorted(path for path in model.rglob("*") if path.suffix in (*MODEL_FILES, ".bin"))
        digests = {str(path.relative_to(model)): file_digest(path) for path in files}
        inputs = [file_digest(path) for path in self.files]
        names = list(map(str, self.files)) if len(inputs) > 1 else []  # column `file` of the parts
        parts = [PARTS_VERSION, self.identity_fields(), " ".join([*names, *inputs]), digests]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
