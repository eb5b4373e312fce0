"""GET /docs: Swagger UI from files of an installed package, so that it needs nothing from outside."""

from importlib import resources
from typing import TYPE_CHECKING

from trainyard.serving.errors import RequestError

if TYPE_CHECKING:
    from fastapi import FastAPI

FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
"""What the page loads, all of it below /docs/, with the media type of each."""

MAY = (
    "default-src 'none'; connect-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)


def add_docs(app: "FastAPI") -> None:
    """Give `app` the page and its files."""
    from fastapi.openapi.docs import get_swagger_ui_html
    from fastapi.responses import HTMLResponse, Response

    folder = resources.files("fastapi_offline") / "static"
    script, style, icon = FILES
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=f"docs/{script}",
        swagger_css_url=f"docs/{style}",
        swagger_favicon_url=f"docs/{icon}",
    ).body

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": MAY})

    @app.get("/docs/{file}", include_in_schema=False)
    def docs_file(file: str) -> Response:
        if file not in FILES:
            raise RequestError("not_found", "there is no such path; see /docs")
        day = {"cache-control": "max-age=86400"}
        return Response((folder / file).read_bytes(), media_type=FILES[file], headers=day)
