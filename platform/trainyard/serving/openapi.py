"""/openapi.json and /docs: the requests of every task, from the predictors' own parameter types."""

from typing import Any

from trainyard.predictors import PREDICTORS
from trainyard.serving.failures import STATUSES

ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {
        "error": {"type": "string", "description": "One sentence: what is wrong, and what to do."},
        "error_type": {"type": "string", "enum": sorted({kind for _, kind in STATUSES.values()})},
    },
}

FAILURES = {
    400: "The body is no JSON object.",
    401: "No key that may use this.",
    404: "No such model; the sentence names those that there are.",
    408: "The body came too slowly.",
    413: "Too many bytes, inputs or tokens.",
    422: "The request cannot be understood.",
    429: "The queue is full; see Retry-After.",
    500: "The model fails on this input.",
    503: "Not ready, or no answer in time; see Retry-After.",
}

NO_BODY = ("400", "408", "413", "422")
"""Failures that only a request with a body can have."""


def describe_api(app: Any) -> None:
    """Complete what FastAPI finds out by itself: bodies are read late, so it sees none."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(type(app).openapi(app))
        return dict(app.openapi_schema)

    app.openapi = schema


def _complete(schema: dict[str, Any]) -> dict[str, Any]:
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components.clear()
    components["Error"] = ERROR
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            responses = operation["responses"] = {
                "200": {"description": "The answer.", "content": {"application/json": {}}}
            }
            for status, text in FAILURES.items():
                if method == "post" or str(status) not in NO_BODY:
                    responses[str(status)] = {
                        "description": text,
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/Error"}}
                        },
                    }
            if path == "/models/{name}" and method == "post":
                operation["summary"] = "Ask a model"
                operation["description"] = (
                    "The shapes of the Hugging Face Inference API: which one a model takes depends on "
                    "its task, see `GET /models/{name}`. A list as `inputs` gives a list of answers."
                )
                operation["requestBody"] = {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "anyOf": [_request(task, components) for task in PREDICTORS]
                            },
                            "examples": {
                                task: {"value": dict(predictor.example)}
                                for task, predictor in PREDICTORS.items()
                            },
                        }
                    },
                }
    return schema


def _request(task: str, components: dict[str, Any]) -> dict[str, str]:
    """Reference to the request type of a task, put among the components."""
    from pydantic import TypeAdapter

    parameters = TypeAdapter(PREDICTORS[task].parameters).json_schema(
        ref_template="#/components/schemas/{model}"
    )
    components.update(parameters.pop("$defs", {}))
    name = "".join(part.title() for part in task.split("-"))
    components[f"{name}Request"] = {
        "title": f"{name}Request",
        "description": " ".join((PREDICTORS[task].__doc__ or task).split()),
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"description": "A text, an object or a list of them, by the task."},
            "parameters": parameters,
            "stream": {"type": "boolean", "default": False},
        },
    }
    return {"$ref": f"#/components/schemas/{name}Request"}
