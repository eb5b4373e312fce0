"""/openapi.json and /docs: requests from the predictors' parameter types, and types of answers.

The answer types are defined here and not taken from huggingface_hub: the names and keys of a schema
are part of the API.
"""

from copy import deepcopy
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from pydantic import TypeAdapter

from trainyard.inference import PREDICTORS, Strict, json_schema
from trainyard.serving.errors import STATUSES, RequestError


@dataclass(frozen=True)
class Label(Strict):
    """A label of the model, or a candidate label."""

    label: str
    score: float
    """Probability of the label; the predicted number for a regression."""
    applies: bool | None = None
    """True if the score is above the fitted threshold. Present only for a multi-label model with
    fitted thresholds."""


@dataclass(frozen=True)
class Entity(Strict):
    """A token, or several tokens that form one entity."""

    score: float
    word: str
    start: int
    """Index of the first character in the text."""
    end: int
    """Index after the last character in the text."""
    entity: str | None = None
    """Label of a token, with aggregation_strategy none."""
    index: int | None = None
    """Number of the token, with aggregation_strategy none."""
    entity_group: str | None = None
    """Label of an entity, with any other aggregation_strategy."""


@dataclass(frozen=True)
class Span(Strict):
    """A piece of the context that answers the question; empty for an impossible answer."""

    score: float
    start: int
    """Index of the first character in the context."""
    end: int
    """Index after the last character in the context."""
    answer: str


@dataclass(frozen=True)
class Proposal(Strict):
    """A proposed token for a mask."""

    score: float
    token: int
    token_str: str
    sequence: str
    """The text with the token in place of the mask."""


@dataclass(frozen=True)
class Summary(Strict):
    """A summary of a text."""

    summary_text: str


@dataclass(frozen=True)
class Translated(Strict):
    """A translation of a text."""

    translation_text: str


@dataclass(frozen=True)
class Token(Strict):
    """A generated token: vocabulary id, natural log-probability, and the text that it adds.

    The text is empty for a special token, and for a part of a character.
    """

    id: int
    logprob: float
    special: bool
    text: str


@dataclass(frozen=True)
class Details(Strict):
    """Details of a generated text."""

    finish_reason: str
    """Reason for the end: length, eos_token or stop_sequence."""
    generated_tokens: int
    input_length: int
    seed: int | None
    """Seed of the sampling, to repeat it; null without sampling."""
    prefill: list[Any]
    """Always empty."""
    tokens: list[Token]


@dataclass(frozen=True)
class Generated(Strict):
    """A generated text."""

    generated_text: str
    details: Details | None = None
    """Present only with `"details": true`."""


@dataclass(frozen=True)
class Ending(Strict):
    """Details at the end of a streamed text."""

    finish_reason: str
    generated_tokens: int
    input_length: int
    seed: int | None


@dataclass(frozen=True)
class Event(Strict):
    """A generated token, as a server-sent event; the last event has the whole text."""

    index: int
    token: Token
    generated_text: str | None
    details: Ending | None


Vector = list[float]

ANSWERS: dict[str, Any] = {
    "text-classification": list[list[Label]],
    "zero-shot-classification": list[Label] | list[list[Label]],
    "token-classification": list[Entity] | list[list[Entity]],
    "question-answering": Span | list[Span] | list[list[Span]],
    "fill-mask": list[Proposal] | list[list[Proposal]] | list[list[list[Proposal]]],
    "summarization": list[Summary] | list[list[Summary]],
    "translation": list[Translated] | list[list[Translated]],
    "text2text-generation": list[Generated] | list[list[Generated]],
    "text-generation": list[Generated] | list[list[Generated]],
    "feature-extraction": list[Vector] | list[list[Vector]] | list[list[list[Vector]]],
    "sentence-similarity": list[float] | list[list[float]],
}
"""Task -> type of the answer to one input or to a list of inputs. Some parameters add a level of
lists."""

REFERENCE = "#/components/schemas/{model}"
"""Reference to a schema by its name."""

ERROR = {
    "type": "object",
    "description": "Body of every error.",
    "required": ["error", "error_type"],
    "properties": {
        "error": {"type": "string", "description": "One sentence: what is wrong, and what to do."},
        "error_type": {"type": "string", "enum": sorted({kind for _, kind in STATUSES.values()})},
    },
}

STATUS = {
    "type": "object",
    "description": "Answer of the routes for probes.",
    "required": ["status"],
    "properties": {"status": {"const": "ok"}},
}

BRIEF: dict[str, Any] = {
    "type": "object",
    "description": "Entry of `GET /models`.",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "The name in the path."},
        "task": {"type": "string", "enum": list(PREDICTORS)},
        "source": {"type": "string", "description": "Run, folder or Hub id that it comes from."},
        "revision": {
            "type": ["string", "null"],
            "description": "Commit, tag or branch on the Hub.",
        },
        "error": {"type": "string", "description": "The reason why it cannot be loaded."},
    },
}

MODEL = {
    "type": "object",
    "description": "Answer of `GET /models/{name}`.",
    "required": ["name"],
    "properties": {
        **BRIEF["properties"],
        "labels": {"type": "array", "items": {"type": "string"}},
        "limits": {"type": "object", "description": "Of one request and of one forward pass."},
        "example": {"type": "object", "description": "A request that it answers."},
        "examples": {"type": "array", "description": "Rows that its run was evaluated on."},
        "parameters": {"type": "object", "description": "JSON schema of a request's parameters."},
        "run": {"type": "object", "description": "The run that trained it, with its config."},
        "metrics": {"type": "object", "description": "Its scores on the validation rows."},
    },
}

ANSWERED = {
    ("/models", "get"): {"type": "array", "items": {"$ref": REFERENCE.format(model="Brief")}},
    ("/models/{name}", "get"): {"$ref": REFERENCE.format(model="Model")},
}
"""(Path, method) -> schema of the answer with status 200. Every other GET answers the schema
`Status`."""

FAILURES = {
    400: "The body is not JSON, or a header is invalid.",
    401: "No key that may use this.",
    403: "The request comes from a page of another site, or names another host.",
    404: "No such model; the error lists the available models.",
    408: "The body arrived too slowly.",
    413: "Too many bytes, inputs or tokens.",
    415: "The body is not JSON, or is compressed by something other than gzip.",
    422: "The request cannot be understood.",
    429: "The queue is full; see Retry-After.",
    500: "The model fails on this input.",
    503: "Not ready, or no answer in time; see Retry-After.",
}
"""HTTP status -> description in the schema."""

PROBE_FAILURES: dict[str, tuple[int, ...]] = {"/health": (), "/ready": (503,)}
"""Path of a probe, which needs no key and may come from any host -> its failures."""

NO_BODY = ("400", "408", "413", "415", "422")
"""Statuses that only requests with a body can get."""


TAGS = [
    {"name": "models", "description": "Query models, and describe them."},
    {"name": "status", "description": "For probes and load balancers."},
]

KEY = {"type": "http", "scheme": "bearer", "description": "An API key of the server's `keys_file`."}

EXAMPLES = 20
"""Maximum number of loaded models whose examples are in the schema."""


def describe_api(app: FastAPI, *, has_keys: bool) -> None:
    """Make `app.openapi` return the complete schema.

    FastAPI's own schema has no bodies, because the routes read them as bytes.

    Args:
        app: Application with all its routes.
        has_keys: True if requests need an API key.
    """

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(type(app).openapi(app), has_keys=has_keys)
        return dict(app.openapi_schema)

    app.openapi = schema  # type: ignore[method-assign]  # as FastAPI's documentation says


def with_examples(schema: dict[str, Any], models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a copy of the schema with the names and examples of loaded models.

    Args:
        schema: Schema from `describe_api`.
        models: Descriptions of the models, by name.
    """
    schema = deepcopy(schema)
    for methods in schema["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "name" and models:
                    parameter["examples"] = {name: {"value": name} for name in models}
    body = schema["paths"]["/models/{name}"]["post"]["requestBody"]["content"]["application/json"]
    own = {
        f"model {name}": {"value": about["example"]}
        for name, about in models.items()
        if "example" in about
    }
    body["examples"] = own | body["examples"]
    return schema


def _complete(schema: dict[str, Any], *, has_keys: bool) -> dict[str, Any]:
    schema["tags"] = TAGS
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components.clear()
    schema["components"]["securitySchemes"] = {"key": KEY}
    components |= {"Error": ERROR, "Brief": BRIEF, "Model": MODEL, "Status": STATUS}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/models"):
                operation["security"] = [{"key": []}] if has_keys else [{}, {"key": []}]
            known = ANSWERED.get((path, method), {"$ref": REFERENCE.format(model="Status")})
            content: dict[str, Any] = {"application/json": {"schema": known}}
            responses = operation["responses"] = {
                "200": {"description": "The answer.", "content": content}
            }
            possible = PROBE_FAILURES.get(path, FAILURES)
            for status, text in FAILURES.items():
                if status in possible and (method == "post" or str(status) not in NO_BODY):
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
    """Return the schema of a server-sent event: a token, a stream's final error, or `[DONE]`."""
    payloads = [_typed("Event", Event, components), {"$ref": REFERENCE.format(model="Error")}]
    payload = {"contentMediaType": "application/json", "contentSchema": {"anyOf": payloads}}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, payload]}},
    }


def _typed(name: str, wanted: Any, components: dict[str, Any]) -> dict[str, str]:
    schema = TypeAdapter(wanted).json_schema(ref_template=REFERENCE)
    components.update(schema.pop("$defs", {}))
    return _component(components, name, schema)


def _title(task: str) -> str:
    return "".join(part.title() for part in task.split("-"))


def _component(components: dict[str, Any], name: str, schema: dict[str, Any]) -> dict[str, str]:
    components[name] = {"title": name, **schema}
    return {"$ref": REFERENCE.format(model=name)}


DOCS_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
"""File below /docs/ that the documentation page loads -> its media type."""

DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
"""Content security policy of the documentation page."""


def add_docs(app: FastAPI) -> None:
    """Add /docs: Swagger UI from the files of an installed package, so it needs no network."""
    folder = resources.files("fastapi_offline") / "static"
    page = Path(__file__).with_name("docs.html").read_text(encoding="utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": DOCS_POLICY})

    @app.get("/docs/{file}", include_in_schema=False)
    def docs_file(file: str) -> Response:
        if file not in DOCS_FILES:
            raise RequestError("not_found", "there is no such path; see /docs")
        day = {"cache-control": "max-age=86400"}
        return Response((folder / file).read_bytes(), media_type=DOCS_FILES[file], headers=day)
