"""Convert JSON to the predictors' inputs, and their results to JSON.

Every mistake in a request is reported in one sentence.
"""

import json
from typing import Any

from pydantic_core import from_json

from trainyard.errors import UserError, one_line
from trainyard.inference import Predictor, Prepared, TooLargeError
from trainyard.serving.errors import RequestError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Bytes that some editors write before UTF-8. RFC 8259 allows a reader to ignore them."""


def read(body: bytes, max_items: int) -> dict[str, Any]:
    """Parse a request's body; return its `inputs`, `parameters` and `stream` (a bool).

    `parameters` also has the keys that stand next to `inputs`.

    Raises:
        RequestError: The kind is `malformed` for invalid JSON; `invalid` for missing inputs or
            parameters that are not an object; `too_large` for more than `max_items` inputs.
    """
    try:
        # The parser also refuses deep nesting.
        request = from_json(body.removeprefix(BYTE_ORDER_MARK), allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            "malformed", f"the body is not valid JSON in UTF-8: {one_line(error, 200)}"
        ) from None
    if not isinstance(request, dict) or "inputs" not in request:
        raise RequestError(
            "invalid", 'the body must be a JSON object with "inputs" and, optionally, "parameters"'
        )
    parameters = request.get("parameters")
    if not isinstance(parameters, dict | None):
        raise RequestError("invalid", '"parameters" must be a JSON object')
    # For some tasks, the Hugging Face client sends parameters next to `inputs`.
    top_level = {
        key: value for key, value in request.items()
        if key not in ("inputs", "parameters", "options", "stream")
    }  # fmt: skip
    inputs = request["inputs"]
    if isinstance(inputs, list) and len(inputs) > max_items:
        raise RequestError(
            "too_large",
            f"the request holds {len(inputs)} inputs, at most {max_items} are allowed in one request; "
            f"split the list over {-(-len(inputs) // max_items)} requests, or raise `max_items` of the "
            "server",
        )
    return {
        "inputs": inputs,
        "parameters": {**top_level, **(parameters or {})},
        "stream": request.get("stream") is True,
    }


def prepare(predictor: Predictor, request: dict[str, Any], max_tokens: int) -> Prepared:
    """Turn a parsed request into tokenized rows.

    Raises:
        RequestError: The kind is `too_large` above the predictor's limits or `max_tokens` in all
            rows; `invalid` for wrong inputs or parameters; `failed` when tokenizing fails.
    """
    try:
        prepared = predictor.preprocess(request["inputs"], request["parameters"])
    except TooLargeError as error:
        raise RequestError("too_large", str(error)) from None
    except UserError as error:
        raise RequestError("invalid", str(error)) from None
    except Exception as error:
        raise RequestError("failed", "the input could not be tokenized") from error
    tokens = sum(row.length for row in prepared.rows)
    if tokens > max_tokens:
        raise RequestError(
            "too_large",
            f"the request holds {tokens} tokens, at most {max_tokens} are allowed in one request; "
            "split a list over several requests, or send shorter inputs",
        )
    return prepared


def dump(result: Any) -> bytes:
    """Encode a result as JSON.

    Raises:
        RequestError: The result has NaN or infinite numbers (`failed`).
    """
    try:
        return json.dumps(result, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise RequestError("failed", "the model's output is not finite on this input") from error
