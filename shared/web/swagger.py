"""A form to try requests in, at `/docs`: Swagger UI, from files of the package fastapi-swagger and no other host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse

HEADERS = {  # Swagger UI styles its own elements, and draws by data: URLs
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", "favicon-32x32.png": "image/png"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="form"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# The validator would send the document to another host.
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#form", deepLinking: true, validatorUrl: null});\n'


def add_form(app: FastAPI) -> None:
    """Serve the page and its files; they are no part of the API."""
    folder, kinds = Path(str(files("fastapi_swagger") / "resources")), _FILES.items()
    pages: dict[str, Callable[[], Response]] = {
        "/docs": partial(_text, _PAGE.format(title=escape(app.title)), "text/html"),
        "/docs/start.js": partial(_text, _START, "text/javascript"),
        **{f"/docs/{name}": partial(FileResponse, folder / name, 200, HEADERS, media) for name, media in kinds},
    }
    for path, page in pages.items():
        app.add_route(path, _serving(page), methods=["GET"], include_in_schema=False)


def _text(content: str, media: str) -> Response:
    return Response(content, 200, HEADERS, media)


def _serving(page: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return page()

    return serve
