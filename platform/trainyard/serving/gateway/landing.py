"""Entry points of a server for its users: the banner in the terminal, and the page at `/`."""

import json
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any
from urllib.parse import quote

EXAMPLE = {"inputs": "…"}
"""Example request for a model whose description is not available."""

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.6rem;border:1px solid #8888;"
    "border-radius:.4rem}"
    ":root{color-scheme:light dark}body{background:#f7f6f2;color:#1b2126}a{color:#0b6b7d}"
    "@media(prefers-color-scheme:dark){body{background:#14181b;color:#e8eaea}a{color:#66c3d3}}"
)

LANDING_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
"""Content security policy of the landing page."""


def curl(base: str, model: str, example: Mapping[str, Any], *, key: bool) -> str:
    """Return the shell command that sends `example` to a model; `key` adds an API key's header."""
    parts = [f"curl {shlex.quote(f'{base}/models/{model}')}", "-H 'Content-Type: application/json'"]
    if key:
        parts.append('-H "Authorization: Bearer $TRAINYARD_KEY"')
    body = json.dumps(example, ensure_ascii=False)
    return " ".join([*parts, "-d", shlex.quote(body)])


def banner(
    base: str, models: Iterable[str], example: Mapping[str, Any] = EXAMPLE, *, key: bool = False
) -> str:
    """Return the lines that announce a ready server: URLs, an example command, and pages."""
    names = list(models)
    return "\n".join(
        [
            f"ready: {', '.join(f'{base}/models/{name}' for name in names)}",
            f"  try         {curl(base, names[0], example, key=key)}",
            f"  playground  {base}/playground#{quote(names[0], safe='')}",
            f"  docs        {base}/docs",
        ]
    )


def links(models: Iterable[str]) -> dict[str, Any]:
    """Return the landing page for JSON clients: paths of the pages and of the loaded models."""
    pages = ("models", "docs", "playground", "openapi.json", "health", "ready")
    return {
        "name": "Trainyard",
        **{page.removesuffix(".json"): f"/{page}" for page in pages},
        "loaded": [f"/models/{name}" for name in models],
    }


def page(base: str, models: Iterable[str], loading: Iterable[str], command: str | None) -> str:
    """Return the landing page for browsers, in HTML.

    Args:
        base: URL of the server.
        models: Names of the loaded models.
        loading: Names of models that are not loaded yet.
        command: Example command; None shows a request for an API key in place of the models.
    """
    rows = [
        f'<li><a href="playground#{quote(name, safe="")}">{escape(name)}</a> '
        f'(<a href="models/{quote(name)}">about</a>)</li>'
        for name in models
    ]
    rows += [f"<li>{escape(name)}: not loaded yet</li>" for name in loading]
    if command is None:
        shown = "<p>This server asks for an API key; send it as <code>Authorization: Bearer KEY</code>.</p>"
    elif rows:
        shown = f"<ul>{''.join(rows)}</ul><pre>{escape(command)}</pre>"
    else:
        shown = "<p>No model is loaded yet; reload this page in a moment.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Trainyard</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main><h1>Trainyard</h1>"
        f"<p>Models at <code>{escape(base)}/models</code>, in the shapes of the Hugging Face Inference "
        f'API.</p>{shown}<p><a href="playground">Playground</a> · <a href="docs">API docs</a> · '
        '<a href="openapi.json">OpenAPI</a> · <a href="models">Models</a> · <a href="ready">Ready?</a>'
        "</p></main></body></html>"
    )
