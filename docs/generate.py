"""Rewrite what is generated in the docs: flags, HTTP reference, results, transcripts and diagrams.

    python docs/generate.py

Tests fail if a page differs from this output.
"""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from fastapi.testclient import TestClient

from trainyard.command import JOBS, Job, parse
from trainyard.config import TrainConfig
from trainyard.inference import PREDICTORS
from trainyard.serving.gateway.http import build_gateway
from trainyard.serving.gateway.keys import KeyRing
from trainyard.serving.options import GatewayOptions

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

from diagrams import ASSETS, DIAGRAMS  # noqa: E402
from result_tables import PLACE, rewrite  # noqa: E402

Row = tuple[str, str, str]
"""Name, value and meaning of a flag or field."""

WIDTH = "129"
"""Columns of the help: too few for two groups of flags side by side."""


SHARED = "train"
"""Command whose section has the flags that all training commands share."""

KINDS = {"STR": "text", "INT": "whole number", "FLOAT": "number"}
"""Words for types in --help."""
LISTS = {
    "STR": "list of names",
    "INT": "list of whole numbers",
    "STR STR": "pairs of names",
    "STR FLOAT": "pairs of name and number",
}
"""Words for types in --help that take several values."""


def flags() -> str:
    """Write the flags reference: a section for each command, a table for each group of flags."""
    page = [
        "# Flags\n\nThis page is generated from `trainyard COMMAND --help`. Any flag can stand in a "
        "file for `--config FILE.yaml`, without its dashes. A flag without a value is a switch: "
        "`--no-…` turns it off.\n"
    ]
    shared = groups_of(JOBS[SHARED])
    for name, job in JOBS.items():
        page.append(f"## {name}\n\n{job.about}\n")
        page.append(
            "```\n" + "".join(f"trainyard {example}\n" for example in job.examples) + "```\n"
        )
        groups = groups_of(job)
        if name != SHARED and issubclass(job.config_class(), TrainConfig):
            page.append(
                f"All flags of [{SHARED}](#{SHARED}){_difference(groups, shared)}{_preset(job)}\n"
            )
            groups = {
                group: [row for row in rows if row not in shared.get(group, [])]
                for group, rows in groups.items()
            }
        for group, rows in groups.items():
            if not rows:
                continue
            table = "".join(
                f"| `{flag}` | {_cell(value)} | {_cell(words)} |\n" for flag, value, words in rows
            )
            page.append(f"**{group}**\n\n| Flag | Value | Meaning |\n| --- | --- | --- |\n{table}")
    return "\n".join(page)


def _difference(groups: Mapping[str, list[Row]], shared: Mapping[str, list[Row]]) -> str:
    own = any(row not in shared.get(group, []) for group, rows in groups.items() for row in rows)
    return ", and these:" if own else "."


def _preset(job: Job) -> str:
    """Return a sentence on the flags that a command presets."""
    if job.preset is None:
        return ""
    _, _, path = job.flags([])[0].partition("=")
    fields = yaml.safe_load(Path(path).read_text())
    given = ", ".join(f"`--{name.replace('_', '-')} {value}`" for name, value in fields.items())
    return f" It begins with {given}."


def groups_of(job: Job) -> dict[str, list[Row]]:
    """Return the flags of a command by their group."""
    groups: dict[str, list[tuple[str, str]]] = {}
    rows: list[tuple[str, str]] = []
    for line in help_of(job).splitlines():
        text = line.strip("│")
        if title := re.match(r"(?:╭─ | )([a-z][\w ,/-]*?)[ ─]*╮?$", line):
            rows = groups.setdefault(title[1].capitalize(), [])
        elif re.match(r" {1,2}--?[a-z]", text):
            usage, _, words = text.strip().partition("  ")
            rows.append((usage, words.strip()))
        elif rows and re.match(r" {3,}\S", text):
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {text.strip()}".strip())
    return {
        title: found
        for title, rows in groups.items()
        if (found := [_row(*row) for row in rows if not row[0].startswith("-h")])
    }


def _row(usage: str, words: str) -> Row:
    flag, _, kind = usage.partition(", --no-")[0].partition(" ")
    # The text describes a default of None.
    return flag, value_in_words(kind), re.sub(r" \(default: (None)?\)$", "", words)


def value_in_words(kind: str) -> str:
    """Write a type of --help in words: `{None}|STR` is text.

    Raises:
        KeyError: The type has no words yet.
    """
    return " or ".join(map(_one_kind, filter("{None}".__ne__, filter(None, kind.split("|")))))


def _one_kind(kind: str) -> str:
    if several := re.fullmatch(r"\{?\[(.+?) \[\1 \.\.\.\]\]\}?", kind):
        return LISTS.get(several[1]) or f"list of {_one_kind(several[1])}"
    if choices := re.fullmatch(r"\{(.+)\}", kind):
        *others, last = [f"`{choice}`" for choice in choices[1].split(",") if choice != "None"]
        return f"{', '.join(others)} or {last}" if others else last
    return KINDS[kind]


def help_of(job: Job) -> str:
    """Return the --help of a command, as text."""
    out = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):
            parse(job.config_class(), ["--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return out.getvalue()


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


JSON_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "object": "object",
    "null": "`null`",
}
"""Words for JSON schema types."""


def http_reference() -> str:
    """Write the HTTP reference: parameters and answers of each task, from the OpenAPI schema."""
    api = sent_schema()
    schemas = api["components"]["schemas"]
    page = [
        "# HTTP reference\n\nThis page is generated from the schema that a server sends at "
        "`GET /openapi.json`. [Ask a model](requests.md) explains requests, errors and headers.\n",
        f"## Routes\n\n{_routes(api['paths'])}",
    ]
    earlier: dict[str, list[Row]] = {}
    for task, predictor in PREDICTORS.items():
        title = "".join(part.title() for part in task.split("-"))
        request = schemas[f"{title}Request"]
        rows = _fields(request["properties"]["parameters"])
        example = json.dumps(dict(predictor.example), ensure_ascii=False)
        page.append(
            f"## {task}\n\n{_sentences(request)}\n\n```json\n{example}\n```\n\n"
            f"{_parameters(rows, earlier)}\nAnswer: {_json_kind(schemas[f'{title}Answer'])}.\n"
        )
        earlier[task] = rows
    page.append("## Objects of answers\n")
    for name, schema in sorted(schemas.items()):
        if not name.endswith(("Request", "Answer")):
            page.append(f"### {name}\n\n{_sentences(schema)}\n\n{_table(_fields(schema))}")
    return "\n".join(page)


def sent_schema() -> dict[str, Any]:
    """Return what a server without models sends at `GET /openapi.json`."""
    models: Any = SimpleNamespace(names=list, waiting_for=list, loading=dict)
    gateway = build_gateway(models, GatewayOptions(), KeyRing(None))
    found: dict[str, Any] = TestClient(gateway, "http://127.0.0.1").get("/openapi.json").json()
    return found


def _routes(paths: Mapping[str, Mapping[str, Any]]) -> str:
    """List the routes of the schema with their answers, their errors and their need for a key."""
    rows = []
    for path, methods in paths.items():
        for method, operation in methods.items():
            answer = operation["responses"]["200"]["content"]["application/json"]
            kind = "by task, see below" if method == "post" else _json_kind(answer["schema"])
            failures = ", ".join(code for code in operation["responses"] if code != "200")
            key = "yes, if the server has keys" if operation.get("security") else "no"
            rows.append(f"| `{method.upper()} {path}` | {kind} | {failures} | {key} |\n")
    head = "| Request | Answer | Errors: [Error](#error) with status | Key |\n| --- | --- | --- | --- |\n"
    return head + "".join(rows)


def _parameters(rows: list[Row], earlier: Mapping[str, list[Row]]) -> str:
    """Write the table of a task's parameters, or refer to an earlier task with the same ones."""
    for task, same in earlier.items():
        if len(same) > 1 and all(row in rows for row in same):
            more = [row for row in rows if row not in same]
            return f"The parameters of [{task}](#{task})" + (
                f", and these:\n\n{_table(more)}" if more else ".\n"
            )
    return _table(rows)


def _sentences(schema: Mapping[str, Any]) -> str:
    return " ".join(schema.get("description", "").split())


def _fields(schema: Mapping[str, Any]) -> list[Row]:
    """Return the fields of an object as rows: name, value and meaning."""
    required = schema.get("required", ())
    return [
        (
            f"`{name}`{' (required)' if name in required else ''}",
            _json_kind(field),
            f"{_sentences(field)}{_default(field)}",
        )
        for name, field in schema["properties"].items()
    ]


def _table(rows: list[Row]) -> str:
    body = "".join(f"| {name} | {kind} | {_cell(words)} |\n" for name, kind, words in rows)
    return f"| Field | Value | Meaning |\n| --- | --- | --- |\n{body}"


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    return "" if default is None else f" (default: `{json.dumps(default)}`)"


def _json_kind(schema: Mapping[str, Any]) -> str:
    """Write a JSON schema in words."""
    *others, last = dict.fromkeys(_json_kinds(schema))
    return f"{', '.join(others)} or {last}" if others else last


def _json_kinds(schema: Mapping[str, Any]) -> Iterator[str]:
    if "anyOf" in schema:
        for kind in schema["anyOf"]:
            # A default of null only marks the field as optional.
            if kind.get("type") != "null" or "default" not in schema:
                yield from _json_kinds(kind)
    elif "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield f"[{name}](#{name.lower()})"
    elif "enum" in schema or "const" in schema:
        for value in schema.get("enum") or [schema["const"]]:
            yield f"`{json.dumps(value)}`"
    elif isinstance(schema["type"], list):
        for kind in schema["type"]:
            yield JSON_KINDS[kind]
    elif schema["type"] == "boolean":
        yield from ("`true`", "`false`")
    elif schema["type"] == "array":
        items = _json_kind(schema["items"]) if schema.get("items") else "any values"
        yield f"list of {re.sub('^list of', 'lists of', items)}"
    else:
        yield JSON_KINDS[schema["type"]] + "".join(_bounds(schema))


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    for key, word in words.items():
        if key in schema:
            yield f", {word} {schema[key]:g}"


def pages() -> dict[Path, str]:
    """Return the text of every generated page and diagram by its path."""
    texts = {page: page.read_text() for page in (HERE.parent / "README.md", *HERE.glob("*.md"))}
    return {
        HERE / "flags.md": flags(),
        HERE / "http.md": http_reference(),
        **{page: rewrite(text) for page, text in texts.items() if PLACE.search(text)},
        **{ASSETS / f"{name}.svg": draw() for name, draw in DIAGRAMS.items()},
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
