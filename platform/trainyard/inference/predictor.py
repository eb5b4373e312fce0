"""Base of all predictors: a request becomes rows, and rows of many requests share a forward pass.

    prepared = predictor.preprocess(inputs, parameters)     # UserError: the request is at fault
    results = predictor.forward(prepared.rows)              # or rows of several requests, of one group
    answer = predictor.postprocess(prepared, results)       # JSON in the Inference API's shape

`preprocess` and `postprocess` do the CPU work of one request; `forward` runs the model. All three are
thread-safe: on a CPU the server runs up to one pass per core at once, unless the model generates.
The caller sets `limits`, and calls `stop_when` for a request that can be canceled. No predictor
uses Ray.
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
"""Default maximum number of tokens in a forward pass, padding included."""

PADDING_TOKENS = 64
"""Maximum tokens of the texts that find a model's padding, if the model has no limit."""


class Predictor(Tokenizing, ABC):
    """Base of predictors: a task of the Inference API with one model. See `PREDICTORS`.

    Attributes:
        task: Name of the task on the Hub.
        auto_model: Name of the transformers class that loads models.
        architectures: Suffixes of supported names in a config's `architectures`.
        parameters: Dataclass of a request's parameters.
        example: Body of a request that any model of the task can answer.
        optional_weights: Name prefixes of weights that the task does not use; may be missing.
        has_label_columns: True if batch inference writes label and score columns, else JSON.
        needs_offsets: True if the task needs each token's character offsets, from a fast tokenizer.
        pair: Names of the fields for the two texts of a pair.
        limits: Maximum size of one request; no limits by default.
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
        """Take a model in evaluation mode and its tokenizer, see `load`.

        Raises:
            UserError: The task needs a fast tokenizer, or the model cannot do the task.
        """
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
        """Load a model and its tokenizer.

        Args:
            name: Folder, `package:NAME/FOLDER`, or Hub id.
            dtype: Number format of forward passes.
            device: Device of the model, such as cpu or cuda.
            revision: Commit, tag or branch on the Hub.
            engine: Engine of forward passes, a key of `ENGINES`.
            engine_file: File of the engine's stored weights, if it needs one.

        Raises:
            UserError: Weights are missing, not in safetensors, or not finite. Or the model has
                custom code or another task, or the engine cannot run it.
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
        if not model.can_generate():  # generation pads decoders on the left
            predictor._find_padding()
        if engine != "torch":
            predictor._start(engine, dtype, engine_file)
        elif not model.can_generate():  # packing gains little in generation
            predictor._run = pack_linears(model)
        return predictor

    def _find_padding(self) -> None:
        texts, limit = ["A row.", "Another row, " * 4], max_tokens(self.model, self.tokenizer)
        tokens = self.tokenize(texts, truncation="longest_first", limit=limit or PADDING_TOKENS)
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
        """Run forward passes with `engine`, and free weights that the engine does not need."""
        import torch

        with torch.inference_mode():
            self._run = start(engine, self.model, self._batches_to_compare(), dtype, file)
        if not ENGINES[engine].keeps_model:
            self.model.to("meta")

    def _batches_to_compare(self) -> list[dict[str, Any]]:
        """Build batches of the example: two rows of two lengths, one row, three longer rows."""
        body = self.example
        prepared = self.preprocess(body["inputs"], body.get("parameters"))
        alone = self.pad(prepared.rows[:1])
        two = {name: values.repeat(2, 1) for name, values in alone.items()}
        two["attention_mask"][1, alone["attention_mask"].shape[1] // 2 :] = 0
        most = self.max_tokens or 3 * prepared.rows[0].length
        long = {name: values.repeat(3, 3)[:, :most] for name, values in alone.items()}
        return [two, alone, long]

    def read_more(self, name: str, revision: str | None) -> None:
        """Read further files of the model; `load` calls this once. The default reads nothing.

        Args:
            name: Folder, `package:NAME/FOLDER`, or Hub id.
            revision: Commit, tag or branch on the Hub.

        Raises:
            UserError: A file is invalid.
        """
        del name, revision

    def check_model(self) -> None:
        """Check and prepare the model for the task; the default does nothing.

        Raises:
            UserError: The model cannot do the task.
        """

    @property
    def labels(self) -> list[str]:
        """Label names in order of the model's outputs; empty for tasks without labels."""
        return self.label_names(self.model.config.id2label)

    @classmethod
    def label_names(cls, id2label: Mapping[Any, str]) -> list[str]:
        """Return label names in order of a model's outputs; empty for tasks without labels.

        Args:
            id2label: Label names by number, from the model's config.

        Raises:
            KeyError: The numbers are not 0, 1, 2 and so on.
        """
        if not cls.auto_model.endswith("Classification"):
            return []
        names = {int(number): name for number, name in id2label.items()}
        return [names[i] for i in range(len(names))]

    def preprocess(self, inputs: Any, parameters: Mapping[str, Any] | None = None) -> Prepared:
        """Check and tokenize one request. A list as `inputs` gives a list of answers.

        Raises:
            UserError: The inputs or parameters are invalid, or exceed `limits`.
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
        """Check and tokenize the inputs; return one item per input."""

    @abstractmethod
    def decode(self, item: Item, results: list[Any], parameters: Any) -> Any:
        """Build the answer to one item from the results of its rows."""

    def shape(self, answers: list[Any], *, listed: bool) -> Any:
        """Build a request's answer: a list if `inputs` was a list (`listed`), else one answer."""
        return answers if listed else answers[0]

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        """Run one forward pass over rows of one group, of any requests; return one result per row.

        A row's result does not depend on the other rows of the pass (fp32: to 1e-5).
        """
        import torch

        with torch.inference_mode():
            return self.results(rows, self._run(**self.pad(rows)))

    def results(self, rows: Sequence[Row], outputs: "ModelOutput") -> list[Any]:
        """Extract each row's result from the model's output. Default: the logits of its tokens."""
        return [logits.numpy() for logits in self.tokens_of(outputs.logits.float().cpu(), rows)]

    def stop_when(self, prepared: Prepared, cancelled: Callable[[], bool]) -> None:
        """Cancel the rows of one request in `forward` once `cancelled()` is true.

        Only generation calls `cancelled`; a single pass is too short to cancel.
        """
        del prepared, cancelled

    def pad(self, rows: Sequence[Row], padding: Padding | None = None) -> "dict[str, torch.Tensor]":
        """Build tensors [rows, longest row] by input name, with `attention_mask`, on `device`."""
        import torch

        arrays = pad_rows([row.inputs for row in rows], self._fill, padding or self.padding)
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def tokens_of(self, output: "torch.Tensor", rows: Sequence[Row]) -> "list[torch.Tensor]":
        """Split an output [rows, longest row, …] into unpadded tensors [tokens, …], one per row."""
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
        """Run rows of any number and group in batches of similar length; return one result per row.

        Args:
            rows: Rows of any requests.
            batch_tokens: Maximum number of tokens in a batch, padding included.
            forward: Function to run on each batch. Default: `self.forward`.
        """
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
            UserError: The inputs or parameters are invalid, or exceed `limits`.
        """
        prepared = self.preprocess(inputs, parameters)
        return self.postprocess(prepared, self.forward_all(prepared.rows))
