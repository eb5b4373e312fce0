"""Base of all predictors: a request becomes rows, rows of many requests share a forward pass.

    prepared = predictor.preprocess(inputs, parameters)     # UserError: the request is at fault
    results = predictor.forward(prepared.rows)              # or any mixture of rows of one group
    answer = predictor.postprocess(prepared, results)       # JSON in the Inference API's shape

`preprocess` and `postprocess` are CPU work of one request, `forward` is the model's. Each of them may
run in several threads at once: on a CPU the server has a pass on each core, unless the model generates.
Who serves a predictor sets its `limits` and, for one request, `stop_when`. No Ray in here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from trainyard.batching import token_batches
from trainyard.errors import UserError
from trainyard.inference.limits import Limits
from trainyard.inference.parameters import check_parameters
from trainyard.inference.rows import Item, Prepared, Row
from trainyard.inference.tokenizing import Tokenizing
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

BATCH_TOKENS = 8192
"""Padded tokens of one forward pass, where the caller does not say."""


class Predictor(Tokenizing, ABC):
    """One task of the Inference API over one model. A row of `PREDICTORS`.

    Attributes:
        task: The task's name on the Hub.
        auto_model: The class of transformers that loads its models.
        architectures: Endings of the names in a config's `architectures` that it serves.
        parameters: Dataclass of what a request may set.
        example: Body of a request that any model of the task can answer.
        optional_weights: Prefixes of weights that the task does not use.
        has_label_columns: Batch inference writes label and score columns instead of one of JSON.
        pair: Names of the two texts of an input that is a pair.
        limits: What one request may grow into.
    """

    task: ClassVar[str]
    auto_model: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    parameters: ClassVar[type[Any]]
    example: Mapping[str, Any]
    optional_weights: ClassVar[tuple[str, ...]] = ()
    has_label_columns: ClassVar[bool] = False
    pair: ClassVar[tuple[str, str]] = ("text", "text_pair")
    limits = Limits()

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Take a model in evaluation mode and its tokenizer, see `load`.

        Raises:
            UserError: when the model cannot do the task.
        """
        super().__init__(tokenizer, max_tokens(model, tokenizer))
        self.model = model
        self.device = model.device
        self._run = model
        self.pad_token_id: int = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.padding = RIGHT
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
        """Build from a folder, `package:NAME/FOLDER` or a Hub id, to be run by an engine in `dtype`.

        Raises:
            UserError: for weights that are no safetensors, missing, NaN or infinite, for code that
                the model brings, a model of another task, or an engine that cannot run it.
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
        elif not model.can_generate():  # whose steps of a row each would gain little
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
        """Have `engine` run the model from now on; what it does not need of the weights is freed."""
        import torch

        with torch.inference_mode():
            self._run = start(engine, self.model, self._batches_to_compare(), dtype, file)
        if not ENGINES[engine].keeps_model:
            self.model.to("meta")

    def _batches_to_compare(self) -> list[dict[str, Any]]:
        """The task's example, in rows of two lengths; alone; and longer, in three rows."""
        body = self.example
        prepared = self.preprocess(body["inputs"], body.get("parameters"))
        alone = self.pad(prepared.rows[:1])
        two = {name: values.repeat(2, 1) for name, values in alone.items()}
        two["attention_mask"][1, alone["attention_mask"].shape[1] // 2 :] = 0
        most = self.max_tokens or 3 * prepared.rows[0].length
        long = {name: values.repeat(3, 3)[:, :most] for name, values in alone.items()}
        return [two, alone, long]

    def read_more(self, name: str, revision: str | None) -> None:
        """Take what else the model's folder says about the task; called once, by `load`.

        Raises:
            UserError: for a file that cannot be what it should.
        """
        del name, revision

    def check_model(self) -> None:
        """Refuse, by a UserError, a model that cannot do the task."""

    @property
    def labels(self) -> list[str]:
        """Names of the model's outputs, in their order; empty for tasks without labels."""
        return []

    def preprocess(self, inputs: Any, parameters: Mapping[str, Any] | None = None) -> Prepared:
        """Check and tokenize one request. A list as `inputs` asks for a list of answers.

        Raises:
            UserError: one sentence about what is wrong with the request.
        """
        checked = check_parameters(self.parameters, parameters, self.task)
        listed = isinstance(inputs, list)
        if listed and not inputs:
            raise UserError("inputs is an empty list; send at least one input")
        items = self.encode(inputs if listed else [inputs], checked)
        return Prepared(items, listed, checked)

    def postprocess(self, prepared: Prepared, results: Sequence[Any]) -> Any:
        """The answer to one request, from the results of `prepared.rows` in their order."""
        rest = iter(results)
        answers = [
            self.decode(item, [next(rest) for _ in item.rows], prepared.parameters)
            for item in prepared.items
        ]
        return self.shape(answers, listed=prepared.listed)

    @abstractmethod
    def encode(self, inputs: list[Any], parameters: Any) -> list[Item]:
        """Items of the inputs, one each."""

    @abstractmethod
    def decode(self, item: Item, results: list[Any], parameters: Any) -> Any:
        """The answer to one item."""

    def shape(self, answers: list[Any], *, listed: bool) -> Any:
        """The whole answer: a list for a list."""
        return answers if listed else answers[0]

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        """Run the model once over rows of one group; one result per row, whatever their requests.

        A row's result does not depend on its neighbors (fp32: to 1e-5).
        """
        import torch

        with torch.inference_mode():
            return self.results(rows, self._run(**self.pad(rows)))

    def results(self, rows: Sequence[Row], outputs: Any) -> list[Any]:
        """Split the model's output into what each row needs of it. Default: its logits."""
        return [logits.numpy() for logits in self.tokens_of(outputs.logits.float().cpu(), rows)]

    def stop_when(self, prepared: Prepared, cancelled: Callable[[], bool]) -> None:
        """Have `forward` give up the rows of one request once `cancelled` says so.

        Only passes of many steps ask; a single one is over before it could be given up.
        """
        del prepared, cancelled

    def pad(self, rows: Sequence[Row], padding: Padding | None = None) -> "dict[str, torch.Tensor]":
        """Tensors of shape [rows, longest row], on the model's device, with `attention_mask`."""
        import torch

        arrays = pad_rows([row.inputs for row in rows], self._fill, padding or self.padding)
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def tokens_of(self, output: "torch.Tensor", rows: Sequence[Row]) -> "list[torch.Tensor]":
        """Cut an output of shape [rows, longest row, …] into one of shape [tokens, …] for each row."""
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
        """`forward` over any number of rows of any groups, in batches of rows of similar length."""
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
        """Answer one request, here and now.

        Raises:
            UserError: one sentence about what is wrong with it.
        """
        prepared = self.preprocess(inputs, parameters)
        return self.postprocess(prepared, self.forward_all(prepared.rows))
