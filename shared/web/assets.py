"""The page on which one watches a text travel: files of ours beside this module, read once, at `/` and `/page/NAME`.

It loads nothing from other hosts, and its policy of content lets no script run but its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response

FOLDER = Path(__file__).with_name("page")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_OWN = "script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
HEADERS = {
    "content-security-policy": f"default-src 'none'; {_OWN}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # after an upgrade nobody sees the old page with the new answers
}


def add_page(app: FastAPI) -> None:
    """Serve every file of the folder; they are no part of the API, so the OpenAPI document does not have them."""
    for file in sorted(FOLDER.iterdir()):
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        app.add_route(path, _serving(file), methods=["GET"], include_in_schema=False)


def _serving(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content, media = file.read_bytes(), _TYPES[file.suffix]

    async def serve(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=media)

    return serve
