"""What the endpoints share on the wire: bodies in, event streams out, clients that go.

`app.py` routes to an `Endpoint` for each address that takes a body; `chat.py`, `completions.py` and
`tokens.py` are what these do. Whatever happens on the way, an error or a client that hangs up
closes the generators behind it: that frees the sequences.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, closing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from litevl.api.json_body import parse_json
from litevl.api.middleware import add_answer_header, to_litevl_error
from litevl.api.ports import Backend
from litevl.api.responses import EVENT_STREAM_HEADERS, error_object, event
from litevl.api.service import Service
from litevl.errors import ModelNotFoundError
from litevl.sequence import ModelCard
from litevl.turns import in_short_turns

LARGE_BODY = 16 * 2**10  # bytes: what hostile ones of that size cost the loop is milliseconds

T = TypeVar("T")
# Reads a body, and makes what will answer its request.
Work = Callable[[Service, Backend, bytes, Scope], Coroutine[Any, Any, ASGIApp]]


class Endpoint:
    """A POST with a body, as an ASGI application; `work` says what it does."""

    def __init__(self, service: Service, work: Work) -> None:
        self._service = service
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the body read and answered, unless the client hangs up before."""
        backend = self._service.ready_backend()
        # The body is handed on and not kept: the model may answer for minutes.
        working = self._work(self._service, backend, await _read_body(scope, receive), scope)
        with closing(working), self._service.admission.enter(scope):
            await _until_disconnect(receive, _answer(working, scope, receive, send))


async def _answer(
    working: Coroutine[Any, Any, ASGIApp], scope: Scope, receive: Receive, send: Send
) -> None:
    answer = await working
    await answer(scope, receive, send)


def find_model(card: ModelCard, name: str | None) -> str:
    """The name to answer under: the one asked for, or the first. Else `ModelNotFoundError`."""
    if name is None:
        return card.names[0]
    if name not in card.names:
        names = ", ".join(card.names)
        raise ModelNotFoundError(f"No such model; this server serves {names}.", param="model")
    return name


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    """All of it. To put a large one together touches so much memory that the loop must not wait."""
    pieces = [piece async for piece in Request(scope, receive).stream()]
    return await _off_the_loop(sum(map(len, pieces)), b"".join, pieces)


async def parse_body(body: bytes, scope: Scope, parse: Callable[[Mapping[str, object]], T]) -> T:
    """A body's JSON, checked by `parse`; slips that were repaired are told in a header."""
    parsed = await _off_the_loop(len(body), parse_json, body)
    if parsed.slips:
        add_answer_header(scope, "x-litevl-json-repaired", ", ".join(parsed.slips))
    return await _off_the_loop(len(body), parse, parsed.value)


async def _off_the_loop(size: int, read: Callable[..., T], *args: object) -> T:
    """Read in a thread what is large: it would keep the loop from other clients."""
    if size <= LARGE_BODY:
        return read(*args)
    return await asyncio.to_thread(in_short_turns, read, *args)


async def _until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, and cancel it as soon as the client hangs up."""
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.wait((worker, watcher))
    if not worker.cancelled():
        worker.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_events(events: AsyncGenerator[bytes, None], scope: Scope, send: Send) -> None:
    """Answer 200 once there is a first event; what fails before that still has its own status."""
    async with aclosing(events):
        body = await anext(events)
        await send(
            {"type": "http.response.start", "status": 200, "headers": list(EVENT_STREAM_HEADERS)}
        )
        try:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            async for body in events:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except Exception as error:  # noqa: BLE001 - the status is out: the stream itself must tell
            body = event(error_object(to_litevl_error(error, scope)))
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
