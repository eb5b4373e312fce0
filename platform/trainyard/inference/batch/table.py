"""Predictions for a table of texts: requests, answers, and columns of the output."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import pyarrow as pa

from trainyard.batch_plan import Item, Result
from trainyard.errors import UserError, one_line
from trainyard.inference.batch.config import PredictConfig
from trainyard.inference.parameters import check_parameters
from trainyard.inference.predictor import Predictor
from trainyard.inference.request_tokens import Prepared

Columns = dict[str, pa.Array]

Answers = Sequence[Any]
"""Answer to each row of a table; None for a row with an error."""


def request_parameters(predictor: Predictor, config: PredictConfig) -> dict[str, Any]:
    """Return the parameters of every request: --parameters, and --truncation if the task has it.

    Raises:
        UserError: A parameter is unknown or invalid.
    """
    given = {}
    for field in fields(predictor.parameters):
        if field.name in ("truncation", "truncate") and isinstance(field.default, bool | str):
            # The default of a task can be a strategy, such as only_first: keep it.
            given[field.name] = config.truncation and (field.default or True)
    parameters = {**given, **config.request}
    check_parameters(predictor.parameters, parameters, predictor.task)
    return parameters


def predict_table(predictor: Predictor, config: PredictConfig, table: pa.Table) -> pa.Table:
    """Add predictions and `truncated_tokens` to a table of texts.

    The table has the columns `row`, `text`, `error` and, for pairs, `text_pair`. Rows of similar
    length share forward passes. A row on which the model fails gets an error and no prediction,
    like rows that already have an error.

    Raises:
        UserError: A parameter of the config is unknown or invalid.
        Exception: The model fails on a row, and also on the built-in example of its task.
    """
    requests = _prepare(predictor, config, table)
    good = [request for request in requests if isinstance(request, Prepared)]
    results = iter(
        predictor.forward_all(
            [row for request in good for row in request.rows],
            config.batch_tokens,
            partial(isolated, predictor.forward),
        )
    )
    answered = [_answer(predictor, request, results) for request in requests]
    answers = [answer for answer, _ in answered]
    errors = [error for _, error in answered]
    if any(error and not isinstance(r, str) for r, error in zip(requests, errors, strict=True)):
        _check_alive(predictor)
    problem = getattr(predictor.model.config, "problem_type", None)
    kind = problem or "single_label_classification" if predictor.has_label_columns else ""
    table = table.drop_columns(["error"])
    for name, column in _COLUMNS.get(kind, _json_column)(predictor, config, answers).items():
        table = table.append_column(name, column)
    cut = [sum(r.truncated) if isinstance(r, Prepared) else 0 for r in requests]
    table = table.append_column("truncated_tokens", pa.array(cut, pa.int32()))
    return table.append_column("error", pa.array(errors, pa.string()))


def isolated(
    forward: Callable[[list[Item]], Sequence[Result]], batch: list[Item]
) -> list[Result | Exception]:
    """Run `forward` on a batch; after an exception, retry each half, down to single items.

    Returns:
        For each item its result, or the exception of `forward` on the item alone.
    """
    try:
        return list(forward(batch))
    except Exception as error:
        if len(batch) == 1:
            return [error.with_traceback(None)]  # its frames would keep the tensors
    middle = len(batch) // 2
    return [*isolated(forward, batch[:middle]), *isolated(forward, batch[middle:])]


def _answer(
    predictor: Predictor, request: Prepared | str, results: Iterator[Any]
) -> tuple[Any, str | None]:
    """Return (answer, None) or (None, error) for a table's row; consume its part of `results`."""
    if isinstance(request, str):
        return None, request
    mine = [next(results) for _ in request.rows]
    try:
        for result in mine:
            if isinstance(result, Exception):
                raise result
        return _finite(predictor.postprocess(request, mine)), None
    except Exception as error:
        return None, _failure(error)


def _finite(answer: Any) -> Any:
    json.dumps(answer, allow_nan=False)
    return answer


def _failure(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    reason = one_line(error, 200)
    return f"the model failed on this row ({type(error).__name__}: {reason}); shorten or remove it"


def _check_alive(predictor: Predictor) -> None:
    """Run the task's example: if it raises, the device or the model is at fault, not a row."""
    example = predictor.example
    _finite(predictor(example["inputs"], **example.get("parameters", {})))


def _prepare(
    predictor: Predictor, config: PredictConfig, table: pa.Table
) -> Sequence[Prepared | str]:
    parameters = request_parameters(predictor, config)
    first, errors = table["text"].to_pylist(), table["error"].to_pylist()
    inputs: list[Any] = first
    if "text_pair" in table.schema.names:
        pairs = zip(first, table["text_pair"].to_pylist(), strict=True)
        inputs = [dict(zip(predictor.pair, pair, strict=True)) for pair in pairs]
    whole = [value for value, error in zip(inputs, errors, strict=True) if error is None]
    prepared = iter(_prepare_all(predictor, whole, parameters) if whole else [])
    return [next(prepared) if error is None else error for error in errors]


def _prepare_all(
    predictor: Predictor, inputs: list[Any], parameters: dict[str, Any]
) -> Sequence[Prepared | str]:
    try:  # in one call: fast tokenizers process many texts in parallel
        whole = predictor.preprocess(inputs, parameters)
        return [Prepared([item], False, whole.parameters) for item in whole.items]
    except Exception:
        return [_one(predictor, value, parameters) for value in inputs]


def _one(predictor: Predictor, value: Any, parameters: dict[str, Any]) -> Prepared | str:
    try:
        return predictor.preprocess(value, parameters)
    except Exception as error:
        return _failure(error)


def _single_label(predictor: Predictor, config: PredictConfig, answers: Answers) -> Columns:
    del config
    best = [None if answer is None else answer[0][0] for answer in answers]  # sorted by score
    return {
        "label": pa.array([top and top["label"] for top in best], pa.string()),
        "score": pa.array([top and top["score"] for top in best], pa.float64()),
        **_every_score(predictor, answers),
    }


def _multi_label(predictor: Predictor, config: PredictConfig, answers: Answers) -> Columns:
    fitted = config.label_thresholds == "fitted" and config.threshold == 0.5

    def applies(found: Mapping[str, Any]) -> bool:
        at_least = found["score"] >= config.threshold
        return bool(found.get("applies", at_least) if fitted else at_least)

    by_index = predictor.labels.index
    apply = [
        answer and sorted((found["label"] for found in answer[0] if applies(found)), key=by_index)
        for answer in answers
    ]
    columns = _every_score(predictor, answers)
    return {"labels": pa.array(apply, pa.list_(pa.string())), **columns}


def _every_score(predictor: Predictor, answers: Answers) -> Columns:
    """Build column `scores`, lists in order of the model's labels, and a column per label."""
    labels = predictor.labels
    by_label = [
        None if answer is None else {found["label"]: found["score"] for found in answer[0]}
        for answer in answers
    ]
    every = [row and [row.get(label) for label in labels] for row in by_label]
    return {
        "scores": pa.array(every, pa.list_(pa.float64())),
        **{
            f"score_{label}": pa.array([row and row[i] for row in every], pa.float64())
            for i, label in enumerate(labels)
        },
    }


def _regression(predictor: Predictor, config: PredictConfig, answers: Answers) -> Columns:
    del predictor, config
    values = [None if answer is None else answer[0][0]["score"] for answer in answers]
    return {"score": pa.array(values, pa.float64())}


def _json_column(predictor: Predictor, config: PredictConfig, answers: Answers) -> Columns:
    del predictor, config
    texts = [None if answer is None else json.dumps(answer) for answer in answers]
    return {"prediction": pa.array(texts, pa.string())}


_COLUMNS: dict[str, Callable[[Predictor, PredictConfig, Answers], Columns]] = {
    "single_label_classification": _single_label,
    "multi_label_classification": _multi_label,
    "regression": _regression,
}
"""Builders of answer columns by problem type; other answers become one column of JSON strings."""
