"""Flags of `jobs/predict.py`."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from trainyard.errors import UserError
from trainyard.flags import PLACE_FIELDS, FileFlags, WorkerFlags
from trainyard.inference.predictor import BATCH_TOKENS, Predictor
from trainyard.inference.registry import PREDICTORS, task_of
from trainyard.models import Dtype, EngineName, locate_model, resolve_model
from trainyard.storage import file_digest

MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".spm", ".tiktoken")
"""Endings of what a model and its tokenizer are loaded from."""

OUTPUTS = (".jsonl", ".parquet")
"""Endings of the files that can be written."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(FileFlags, WorkerFlags):
    """Predict every row of a file with a fine-tuned model.

    The output has the input's rows in their order, each exactly once. The same command resumes where
    it was stopped.
    """

    not_in_identity: ClassVar[tuple[str, ...]] = (*PLACE_FIELDS, "output_file")

    model_name_or_path: str
    """A run's model/ folder, a Hub id, or package:NAME/FOLDER."""
    revision: str | None = None
    """Commit, tag or branch of a model on the Hub; resolved to a commit once for the job."""
    input_file: str
    """.csv, .tsv, .json, .jsonl or .parquet."""
    output_file: str
    """.jsonl or .parquet; replaced when all rows are predicted."""
    model_task: str | None = None
    """The model's task, by the Hub's names. Default: the task of its architecture."""
    text_column: str = "text"
    """Column of the text (question-answering: of the question)."""
    text_pair_column: str | None = None
    """Column of the second text of a pair (question-answering: of the context)."""
    parameters: str = "{}"
    """The task's parameters as in a request, a JSON object: '{"candidate_labels": ["a", "b"]}'."""
    truncation: bool = True
    """Cut off texts that are too long, and count them; with --no-truncation such rows are errors."""
    threshold: float = 0.5
    """Multi-label: labels with at least this score apply."""
    batch_tokens: int = BATCH_TOKENS
    """Padded tokens of a forward pass."""
    engine: EngineName = "torch"
    """Engine of the forward passes; openvino runs on CPUs, see jobs/engine.py."""
    dtype: Dtype = "float32"
    """Number format of the forward passes."""
    num_workers: int = 1
    """Processes on Ray. With one and no --address, this process predicts."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, before anything is loaded."""
        super().__post_init__()
        if Path(self.output_file).suffix not in OUTPUTS:
            raise UserError(
                f"--output-file {self.output_file} must end in .jsonl or .parquet; rename it"
            )
        if self.model_task is not None and self.model_task not in PREDICTORS:
            raise UserError(
                f"--model-task {self.model_task} is not known; use one of {', '.join(PREDICTORS)}"
            )
        if not isinstance(self.request, dict):
            raise UserError(f"--parameters is {self.parameters}; it must be a JSON object")

    @property
    def request(self) -> Any:
        """`parameters`, read.

        Raises:
            UserError: when it is no JSON.
        """
        try:
            return json.loads(self.parameters)
        except ValueError as error:
            raise UserError(
                f"--parameters is no valid JSON ({error}); quote it with '…'"
            ) from error

    def predictor(self) -> Predictor:
        """The model, loaded for its task."""
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
        """The same for a process with another working directory."""
        return replace(self, model_name_or_path=locate_model(self.model_name_or_path))

    def pinned(self) -> Self:
        """The same, with the commit that the Hub has under `revision` now."""
        from transformers.utils import cached_file, extract_commit_hash

        model = resolve_model(self.model_name_or_path)
        try:
            file = cached_file(model, "config.json", revision=self.revision)
        except OSError:  # loading the model says what is wrong with it
            return self
        return replace(self, revision=extract_commit_hash(file, None) or self.revision)

    def identity(self) -> str:
        """Hash the flags, the input file and the model's files: all that decides the predictions.

        On the Hub a commit stands for the weights, see `pinned`.
        """
        model = Path(resolve_model(self.model_name_or_path))
        files = sorted(path for path in model.rglob("*") if path.suffix in MODEL_FILES)
        digests = {str(path.relative_to(model)): file_digest(path) for path in files}
        parts = [self.identity_fields(), file_digest(self.input_file), digests]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
