"""What every request passes: one spelling of its address, an id, a record of what becomes of it,
errors as JSON.

Pure ASGI, put together by `app.py`. Of routes it knows their paths, of models nothing.
"""

import asyncio
import logging
import re
import traceback
import uuid
from collections.abc import Sequence as Many

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litevl.api.records import Records, record_of
from litevl.api.responses import error_response
from litevl.api.service import going_down
from litevl.errors import (
    InternalError,
    LitevlError,
    MethodNotAllowedError,
    RouteNotFoundError,
    UnavailableError,
)
from litevl.logs import FRAMES

logger = logging.getLogger("litevl.api")

_SLASHES = re.compile("/{2,}")
_NO_THREAD = "can't start new thread"  # Python's words where memory or a limit is at its end
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_REQUEST_ID = "litevl.request_id"  # in the scope's state
_ANSWER_HEADERS = "litevl.answer_headers"  # in the scope: headers that go out with whatever answer


def normalised(scope: Scope) -> Scope:
    """`Post //v1//models/` is `POST /models`: clients spell base URLs and methods in many ways.

    A copy: the server frames its answer by the method that the client really sent.
    """
    return {**scope, "method": scope["method"].upper(), "path": normal_path(scope["path"])}


def normal_path(path: str) -> str:
    """Without doubled and trailing slashes, and without a leading `/v1`."""
    path = _SLASHES.sub("/", path).rstrip("/").removeprefix("/")
    return "/" + ("" if path == "v1" else path.removeprefix("v1/"))


class AnswerHeaders:
    """Sends `x-request-id`, the client's or a new one, and what `add_answer_header` noted."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"x-request-id": request_id(scope)}
        scope[_ANSWER_HEADERS] = headers

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def add_answer_header(scope: Scope, name: str, value: str) -> None:
    """Have a header sent with the answer to this request, be it an error."""
    scope[_ANSWER_HEADERS][name] = value


def request_id(scope: Scope) -> str:
    """The id that the client knows this request by: its own, or one made when first asked for."""
    state = scope["state"]  # which copies of the scope share, the connection's own too
    if _REQUEST_ID not in state:
        given = Headers(scope=scope).get("x-request-id", "")
        state[_REQUEST_ID] = given if _PLAIN_ID.fullmatch(given) else new_request_id()
    return str(state[_REQUEST_ID])


def new_request_id() -> str:
    """For a request that brought none, or of which no head could be read."""
    return f"req-{uuid.uuid4().hex}"


class Cors(CORSMiddleware):
    """Pages of every origin may call, and read what is answered."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            app,
            allow_origins=["*"],
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=[
                *("x-request-id", "x-litevl-json-repaired"),
                *("retry-after", "x-should-retry"),  # by which SDKs decide, in a browser too
            ],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Starlette's, but a refusal is an error like all others."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        refusal = error_response(MethodNotAllowedError("Pages of other origins may GET and POST."))
        refusal.headers["allow"] = "GET, POST"
        return refusal


class Recording:
    """Has every request told once it has ended, in whatever way."""

    def __init__(self, app: ASGIApp, records: Records, routes: Many[Route]) -> None:
        """`routes` are the addresses that exist; all others are one."""
        self._app = app
        self._records = records
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = self._records.begin(scope, request_id(scope), self._endpoint(scope["path"]))

        async def noting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        finally:
            self._records.finish(record)

    def _endpoint(self, path: str) -> str:
        """An address as it is told: what a caller may put into one is left out."""
        found = (each.path_format for each in self._routes if each.path_regex.match(path))
        return next(found, "other")


class Errors:
    """The one place where an exception becomes an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            return  # nobody is there to be answered
        # uvicorn cancels what it no longer waits for. The edge: no exception may leave it.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            answer = to_litevl_error(error, scope)
            # Or else the server closes the connection on the torn answer.
            if record_of(scope).status is None:
                await error_response(answer)(scope, receive, send)


def to_litevl_error(error: BaseException, scope: Scope) -> LitevlError:
    """What to tell a client of the error that ends its request; the record hears of it too."""
    answer = _answer_to(error, request_id(scope))
    record_of(scope).code = answer.code
    return answer


def _answer_to(error: BaseException, request: str) -> LitevlError:
    """The unexpected is logged with its origin, never with its message."""
    if isinstance(error, LitevlError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return going_down()
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        return _route_error(error)
    frames = "".join(traceback.format_tb(error.__traceback__))
    name = type(error).__name__
    logger.error("%s: unexpected %s", request, name, extra={FRAMES: frames})
    if isinstance(error, MemoryError) or str(error) == _NO_THREAD:
        return UnavailableError("Out of memory or threads; try again, or send less.")
    return InternalError("The server failed on this request; its log says where.")


def _route_error(error: HTTPException) -> LitevlError:
    if error.status_code == 404:
        return RouteNotFoundError("No such address; the API is at /v1/chat/completions.")
    allowed = (error.headers or {}).get("Allow", "")
    answer = MethodNotAllowedError(f"This address takes {allowed}.")
    answer.headers["allow"] = allowed
    return answer
