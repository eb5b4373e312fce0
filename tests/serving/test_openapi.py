"""/openapi.json as it is generated: everything is described, and answers are what it says."""

import asyncio
import json
from typing import Any
from urllib.request import urlopen

import jsonschema
import pytest
from support.serving_locally import LocalModels, serving

from trainyard.inference.registry import PREDICTORS
from trainyard.serving.gateway.openapi import ANSWERS

MORE: dict[str, list[dict[str, Any]]] = {
    "token-classification": [{"aggregation_strategy": "none"}],
    "question-answering": [{"top_k": 2}, {"handle_impossible_answer": True}],
    "text-generation": [{"details": True}, {"details": True, "do_sample": True, "seed": 1}],
    "summarization": [{"num_beams": 2, "num_return_sequences": 2}],
    "feature-extraction": [{"pooling": "mean"}],
}
"""Parameters, beside those of the example, that change an answer's shape."""


def get(url: str) -> Any:
    with urlopen(url) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def got(every_host: dict[str, Any]) -> dict[str, Any]:
    """What is answered to GET, by path."""
    with serving(LocalModels(every_host)) as url:
        paths = ["/openapi.json", "/models", "/health", "/ready"]
        paths += [f"/models/{task}" for task in every_host]
        return {path: get(f"{url}{path}") for path in [*paths, "/models/fill-mask/health"]}


def check(schema: dict[str, Any], part: dict[str, Any], value: Any) -> None:
    jsonschema.validate(value, {**part, "components": schema["components"]})


def test_every_parameter_is_described(got: dict[str, Any]) -> None:
    schemas = got["/openapi.json"]["components"]["schemas"]
    for task, predictor in PREDICTORS.items():
        name = "".join(part.title() for part in task.split("-"))
        asked = schemas[f"{name}Request"]["properties"]["parameters"]["properties"]
        told = got[f"/models/{task}"]["parameters"]["properties"]
        assert asked.keys() == told.keys() == predictor.parameters.__dataclass_fields__.keys()
        for described in (*asked.values(), *told.values()):
            assert described["description"], task


def test_an_answer_may_say_whether_a_label_applies(got: dict[str, Any]) -> None:
    schema, part = got["/openapi.json"], {"$ref": "#/components/schemas/TextClassificationAnswer"}
    answer = [[{"label": "sport", "score": 0.4, "applies": True}, {"label": "news", "score": 0.1}]]
    check(schema, part, answer)
    with pytest.raises(jsonschema.ValidationError):
        check(schema, part, [[{"label": "sport", "score": 0.4, "applies": "yes"}]])


def test_every_answer_has_a_schema_and_follows_it(got: dict[str, Any]) -> None:
    schema = got["/openapi.json"]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            for kind, content in operation["responses"]["200"]["content"].items():
                wanted = "itemSchema" if kind == "text/event-stream" else "schema"
                assert content[wanted], (path, method)
            if method == "get":
                part = operation["responses"]["200"]["content"]["application/json"]["schema"]
                check(schema, part, got[path.replace("{name}", "fill-mask")])


@pytest.mark.parametrize("task", sorted(PREDICTORS))
def test_the_answer_of_a_task_is_what_the_schema_says(
    got: dict[str, Any], every_host: dict[str, Any], task: str
) -> None:
    assert ANSWERS.keys() == PREDICTORS.keys()
    name = "".join(part.title() for part in task.split("-"))
    part = {"$ref": f"#/components/schemas/{name}Answer"}
    example = every_host[task].predictor.example
    for more in ({}, *MORE.get(task, [])):
        parameters = {**example.get("parameters", {}), **more}
        for inputs in (example["inputs"], [example["inputs"]] * 2):
            body = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
            answer = json.loads(asyncio.run(every_host[task].answer(body, 30)).body)
            check(got["/openapi.json"], part, answer)
    with pytest.raises(jsonschema.ValidationError):
        check(got["/openapi.json"], part, {"error": "a sentence"})
