"""The page at `/`: its files, read once, with the headers that shut everything else out.

`app.py` routes to it. The files lie in `page/` and hold no key and nothing of this server: the page
asks the endpoints of `app.py` like any other client.
"""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import litevl

PACKAGE = Path(litevl.__file__).parent
FOLDER = Path(__file__).with_name("page")
SAMPLES = (PACKAGE / "demo" / "sample.jpg", PACKAGE / "demo" / "sample.mp4")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".mp4": "video/mp4",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "cache-control": "no-cache",  # kept, and asked about each time: a new litevl is seen at once
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page_routes() -> list[Route]:
    """`/` and the files beside it, `/page/NAME` each: a name that is not there is no address."""
    files = [file for file in sorted(FOLDER.iterdir()) if file.suffix in TYPES]
    return [_route(file) for file in (*files, *SAMPLES)]


def _route(file: Path) -> Route:
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"content-type": TYPES[file.suffix], "etag": tag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return Route("/" if file.name == "index.html" else f"/page/{file.name}", answer)
