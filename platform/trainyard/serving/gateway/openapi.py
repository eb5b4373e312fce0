"""/openapi.json and /docs: the requests of every task, from the predictors' own parameter types."""

from typing import Any

from trainyard.inference import PREDICTORS, json_schema
from trainyard.serving.errors import STATUSES
from trainyard.serving.gateway.answers import ANSWERS, Event

REFERENCE = "#/components/schemas/{model}"

ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {
        "error": {"type": "string", "description": "One sentence: what is wrong, and what to do."},
        "error_type": {"type": "string", "enum": sorted({kind for _, kind in STATUSES.values()})},
    },
}

STATUS = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"const": "ok"}},
}

BRIEF: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "What stands in the path."},
        "task": {"type": "string", "enum": list(PREDICTORS)},
        "source": {"type": "string", "description": "Run, folder or Hub id that it comes from."},
        "revision": {
            "type": ["string", "null"],
            "description": "Commit, tag or branch on the Hub.",
        },
        "error": {"type": "string", "description": "Why it cannot be loaded."},
    },
}

MODEL = {
    "type": "object",
    "required": ["name"],
    "properties": {
        **BRIEF["properties"],
        "labels": {"type": "array", "items": {"type": "string"}},
        "limits": {"type": "object", "description": "Of one request and of one forward pass."},
        "example": {"type": "object", "description": "A request that it answers."},
        "parameters": {"type": "object", "description": "JSON schema of a request's parameters."},
        "run": {"type": "object", "description": "The run that trained it, with its config."},
        "metrics": {"type": "object", "description": "What it scored there."},
    },
}

ANSWERED = {
    ("/models", "get"): {"type": "array", "items": {"$ref": REFERENCE.format(model="Brief")}},
    ("/models/{name}", "get"): {"$ref": REFERENCE.format(model="Model")},
}
"""Schemas of what is answered with 200; any other GET answers `STATUS`."""

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
    components |= {"Error": ERROR, "Brief": BRIEF, "Model": MODEL, "Status": STATUS}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            known = ANSWERED.get((path, method), {"$ref": REFERENCE.format(model="Status")})
            content: dict[str, Any] = {"application/json": {"schema": known}}
            responses = operation["responses"] = {
                "200": {"description": "The answer.", "content": content}
            }
            for status, text in FAILURES.items():
                if method == "post" or str(status) not in NO_BODY:
                    responses[str(status)] = {
                        "description": text,
                        "content": {
                            "application/json": {
                                "schema": {"$ref": REFERENCE.format(model="Error")}
                            }
                        },
                    }
            if path == "/models/{name}" and method == "post":
                answers = [
                    _typed(f"{_title(task)}Answer", ANSWERS.get(task, Any), components)
                    for task in PREDICTORS
                ]
                content["application/json"]["schema"] = {"anyOf": answers}
                content["text/event-stream"] = {"itemSchema": _event(components)}
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
    parameters = json_schema(PREDICTORS[task].parameters, ref_template=REFERENCE)
    components.update(parameters.pop("$defs", {}))
    schema = {
        "description": " ".join((PREDICTORS[task].__doc__ or task).split()),
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"description": "A text, an object or a list of them, by the task."},
            "parameters": parameters,
            "stream": {"type": "boolean", "default": False},
        },
    }
    return _component(components, f"{_title(task)}Request", schema)


def _event(components: dict[str, Any]) -> dict[str, Any]:
    """A server-sent event: a token, the failure that ends a stream, or its end."""
    told = [_typed("Event", Event, components), {"$ref": REFERENCE.format(model="Error")}]
    payload = {"contentMediaType": "application/json", "contentSchema": {"anyOf": told}}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, payload]}},
    }


def _typed(name: str, wanted: Any, components: dict[str, Any]) -> dict[str, str]:
    """Reference to a type of what is answered, put among the components."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(wanted).json_schema(ref_template=REFERENCE)
    components.update(schema.pop("$defs", {}))
    return _component(components, name, schema)


def _title(task: str) -> str:
    return "".join(part.title() for part in task.split("-"))


def _component(components: dict[str, Any], name: str, schema: dict[str, Any]) -> dict[str, str]:
    components[name] = {"title": name, **schema}
    return {"$ref": REFERENCE.format(model=name)}
