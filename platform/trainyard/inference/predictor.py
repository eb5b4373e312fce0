"""Base of all predictors: a request becomes rows, rows of many requests share a forward pass.

    prepared = predictor.preprocess(inputs, parameters)     # UserError: the request is at fault
    results = predictor.forward(prepared.rows)              # or rows of several requests, of one group
    answer = predictor.postprocess(prepared, results)       # JSON in the Inference API's shape

`preprocess` and `postprocess` do the CPU work of one request; `forward` runs the model. All three are
thread-safe: on a CPU the server runs one pass per core, unless the model generates. The caller
sets `limits` and, for a request, `stop_when`. This package does not use Ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from trainyard.batch_plan import token_batches
from trainyard.errors import UserError
from trainyard.inference.parameters import check_parameters
from trainyard.inference.request_tokens import Item, Prepared, Row, Tokenizing
from trainyard.inference.row_limits import Limits
from trainyard.models import (
    ENGINES,
    RIGHT,
    Padding,
    check_engine,
    find_padding,
    load_model,
    max_tokens,
    pack_linears,
    pad_rows,
    start,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils import ModelOutput

BATCH_TOKENS = 8192
"""Default maximum of padded tokens per forward pass."""


class Predictor(Tokenizing, ABC):
    """Base of the tasks of the Inference API, each over one model. Registered in `PREDICTORS`.

    Attributes:
        task: The task's name on the Hub.
        auto_model: Transformers class that loads the models.
        architectures: Suffixes of the supported names in a config's `architectures`.
        parameters: Dataclass of a request's parameters.
        example: Body of a request that any model of the task can answer.
        optional_weights: Name prefixes of weights that the task does not use.
        has_label_columns: Batch inference writes label and score columns instead of one JSON column.
        needs_offsets: The task needs the characters of each token, which slow tokenizers do not give.
        pair: Field names of the two texts of a pair.
        limits: Maximum size of one request.
    """

    task: ClassVar[str]
    auto_model: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    parameters: ClassVar[type[Any]]
    example: Mapping[str, Any]
    optional_weights: ClassVar[tuple[str, ...]] = ()
    has_label_columns: ClassVar[bool] = False
    needs_offsets: ClassVar[bool] = False
    pair: ClassVar[tuple[str, str]] = ("text", "text_pair")
    limits = Limits()

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Take a model in evaluation mode and its tokenizer, see `load`."""
        super().__init__(tokenizer, max_tokens(model, tokenizer))
        self.model = model
        self.device = model.device
        self._run = model
        self.pad_token_id: int = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.padding = RIGHT
        if self.needs_offsets and not tokenizer.is_fast:
            raise UserError(
                f"{self.task} needs a fast tokenizer (tokenizer.json); convert the model"
            )
        self.check_model()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        revision: str | None = None,
        engine: str = "torch",
        engine_file: Path | None = None,
    ) -> Self:
        """Load from a folder, `package:NAME/FOLDER` or a Hub id; the engine runs it in `dtype`.

        Raises:
            UserError: for weights that are not safetensors, missing, NaN or infinite. Also for a model
                with custom code or of another task, and for an engine that cannot run it.
        """
        check_engine(engine, dtype, device)
        model, tokenizer = load_model(
            cls.auto_model,
            name,
            dtype=ENGINES[engine].loads or dtype,
            device=device,
            revision=revision,
            optional_weights=cls.optional_weights,
        )
        predictor = cls(model, tokenizer)
        predictor.read_more(name, revision)
        if not model.can_generate():  # `generate` pads decoders on the left, with their positions
            predictor._find_padding()
        if engine != "torch":
            predictor._start(engine, dtype, engine_file)
        elif not model.can_generate():  # generation would gain little
            predictor._run = pack_linears(model)
        return predictor

    def _find_padding(self) -> None:
        tokens = self.tokenize(["A row.", "Another row, " * 4], truncation="longest_first")
        lengths = [len(ids) for ids in tokens.encoding["input_ids"]]
        if 0 < lengths[0] < lengths[1]:
            rows = [row.inputs for row in self.rows_of(tokens)]
            side = self.tokenizer.padding_side
            self.padding = find_padding(self.model, rows, self._fill, side)
            self.batches_equal_lengths = self.padding.equal_lengths

    @property
    def _fill(self) -> dict[str, int]:
        types = getattr(self.tokenizer, "pad_token_type_id", 0)
        return {"input_ids": self.pad_token_id, "token_type_ids": types}

    def _start(self, engine: str, dtype: str, file: Path | None) -> None:
        """Switch the model to `engine`; weights that the engine does not need are freed."""
        import torch

        with torch.inference_mode():
            self._run = start(engine, self.model, self._batches_to_compare(), dtype, file)
        if not ENGINES[engine].keeps_model:
            self.model.to("meta")

    def _batches_to_compare(self) -> list[dict[str, Any]]:
        """Build three batches of the task's example: rows of two lengths, one row, three longer rows."""
        body = self.example
        prepared = self.preprocess(body["inputs"], body.get("parameters"))
        alone = self.pad(prepared.rows[:1])
        two = {name: values.repeat(2, 1) for name, values in alone.items()}
        two["attention_mask"][1, alone["attention_mask"].shape[1] // 2 :] = 0
        most = self.max_tokens or 3 * prepared.rows[0].length
        long = {name: values.repeat(3, 3)[:, :most] for name, values in alone.items()}
        return [two, alone, long]

    def read_more(self, name: str, revision: str | None) -> None:
        """Read further files of the model's folder; called once, by `load`.

        Raises:
            UserError: for an invalid file.
        """
        del name, revision

    def check_model(self) -> None:
        """Refuse, by a UserError, a model that cannot do the task."""

    @property
    def labels(self) -> list[str]:
        """Names of the model's outputs, in their order; empty for tasks without labels."""
        return self.label_names(self.model.config.id2label)

    @classmethod
    def label_names(cls, id2label: Mapping[Any, str]) -> list[str]:
        """Names of a model's outputs by the `id2label` of its config; empty for tasks without labels.

        Raises:
            KeyError: when its numbers are not those from 0 on.
        """
        if not cls.auto_model.endswith("Classification"):
            return []
        names = {int(number): name for number, name in id2label.items()}
        return [names[i] for i in range(len(names))]

    def preprocess(self, inputs: Any, parameters: Mapping[str, Any] | None = None) -> Prepared:
        """Check and tokenize one request. A list as `inputs` gives a list of answers.

        Raises:
            UserError: one sentence about the error in the request.
        """
        checked = check_parameters(self.parameters, parameters, self.task)
        listed = isinstance(inputs, list)
        if listed and not inputs:
            raise UserError("inputs is an empty list; send at least one input")
        items = self.encode(inputs if listed else [inputs], checked)
        return Prepared(items, listed, checked)

    def postprocess(self, prepared: Prepared, results: Sequence[Any]) -> Any:
        """Build the answer to one request from the results of `prepared.rows`, in the same order."""
        rest = iter(results)
        answers = [
            self.decode(item, [next(rest) for _ in item.rows], prepared.parameters)
            for item in prepared.items
        ]
        return self.shape(answers, listed=prepared.listed)

    @abstractmethod
    def encode(self, inputs: list[Any], parameters: Any) -> list[Item]:
        """Build one item per input."""

    @abstractmethod
    def decode(self, item: Item, results: list[Any], parameters: Any) -> Any:
        """Build the answer to one item."""

    def shape(self, answers: list[Any], *, listed: bool) -> Any:
        """Build the whole answer: a list if `inputs` was a list."""
        return answers if listed else answers[0]

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        """Run the model once over rows of one group, of any requests; returns one result per row.

        A row's result does not depend on its neighbors (fp32: to 1e-5).
        """
        import torch

        with torch.inference_mode():
            return self.results(rows, self._run(**self.pad(rows)))

    def results(self, rows: Sequence[Row], outputs: "ModelOutput") -> list[Any]:
        """Extract each row's result from the model's output. Default: the logits."""
        return [logits.numpy() for logits in self.tokens_of(outputs.logits.float().cpu(), rows)]

    def stop_when(self, prepared: Prepared, cancelled: Callable[[], bool]) -> None:
        """Cancel the rows of one request in `forward` once `cancelled()` is true.

        Only generation checks it; a single pass is too short to cancel.
        """
        del prepared, cancelled

    def pad(self, rows: Sequence[Row], padding: Padding | None = None) -> "dict[str, torch.Tensor]":
        """Build tensors of shape [rows, longest row] on the model's device, with `attention_mask`."""
        import torch

        arrays = pad_rows([row.inputs for row in rows], self._fill, padding or self.padding)
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def tokens_of(self, output: "torch.Tensor", rows: Sequence[Row]) -> "list[torch.Tensor]":
        """Split an output of shape [rows, longest row, …] into arrays of shape [tokens, …] per row."""
        width = output.shape[1]
        return [
            output[i, self.padding.span(len(row.inputs["input_ids"]), width)]
            for i, row in enumerate(rows)
        ]

    def forward_all(
        self,
        rows: Sequence[Row],
        batch_tokens: int = BATCH_TOKENS,
        forward: Callable[[list[Row]], Sequence[Any]] | None = None,
    ) -> list[Any]:
        """Run `forward` over rows of any number and group, in batches of similar length."""
        forward = forward or self.forward
        results: list[Any] = [None] * len(rows)
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(row.group, []).append(i)
        for members in groups.values():
            lengths = np.array([rows[i].length for i in members])
            for batch in token_batches(lengths, batch_tokens):
                places = [members[i] for i in batch]
                for place, result in zip(
                    places, forward([rows[place] for place in places]), strict=True
                ):
                    results[place] = result
        return results

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Answer one request synchronously.

        Raises:
            UserError: one sentence about the error in the request.
        """
        prepared = self.preprocess(inputs, parameters)
        return self.postprocess(prepared, self.forward_all(prepared.rows))
