"""Between bytes and what predictors take and give; every mistake in a request is one sentence."""

import json
from typing import Any

from trainyard.errors import UserError
from trainyard.inference import Predictor, Prepared, TooLargeError
from trainyard.serving.errors import RequestError


def read(body: bytes, max_items: int) -> dict[str, Any]:
    """The request, its parameters in one place, its items counted.

    Raises:
        RequestError: when it is none, or too large.
    """
    from pydantic_core import from_json

    try:
        request = from_json(body, allow_inf_nan=False)  # refuses deep nesting, too
    except (ValueError, RecursionError) as error:
        raise RequestError(
            "malformed", f"the body is no valid JSON: {' '.join(str(error).split())[:200]}"
        ) from None
    if not isinstance(request, dict) or "inputs" not in request:
        raise RequestError(
            "invalid",
            'the body must be a JSON object with "inputs" and, optionally, "parameters"',
        )
    parameters = request.get("parameters")
    if not isinstance(parameters, dict | None):
        raise RequestError("invalid", '"parameters" must be a JSON object')
    # Some tasks of the Hugging Face client send their parameters beside `inputs`.
    beside = {
        key: value for key, value in request.items()
        if key not in ("inputs", "parameters", "options", "stream")
    }  # fmt: skip
    inputs = request["inputs"]
    if isinstance(inputs, list) and len(inputs) > max_items:
        raise RequestError(
            "too_large",
            f"the request holds {len(inputs)} inputs, at most {max_items} may come "
            "at once; send them in several requests",
        )
    return {"inputs": inputs, "parameters": {**beside, **(parameters or {})}}


def prepare(predictor: Predictor, request: dict[str, Any], max_tokens: int) -> Prepared:
    """Its rows.

    Raises:
        RequestError: when it makes no sense to the predictor, or is too large.
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
            f"the request holds {tokens} tokens, at most {max_tokens} may come "
            "at once; send fewer or shorter inputs",
        )
    return prepared


def dump(result: Any) -> bytes:
    """The bytes of an answer.

    Raises:
        RequestError: when the model gave what JSON cannot hold.
    """
    try:
        return json.dumps(result, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise RequestError("failed", "the model's output is not finite on this input") from error
