"""The HTTP server without a model: tokens a second at 1, 16 and 256 streams, beside bare Starlette.

`python -m benchmarks.server`. Server and clients are two processes on a core each. A null engine
stands behind all of litevl's HTTP side and gives every stream a token a step; it makes the next
step when the frames of the last have been sent, so that no frame holds two tokens. The peer, in the
same run, streams as many frames of the same size from a bare Starlette application.
"""

import asyncio
import json
import multiprocessing
import os
import selectors
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from benchmarks.null_backend import FrameCounter, NullEngine, null_backend
from benchmarks.program import finish, parser, table, tell, undisturbed
from litevl.api.app import create_app
from litevl.api.bodies import MAX_BYTES_IN_FLIGHT
from litevl.api.records import Records
from litevl.api.service import Service
from litevl.api.wire import GuardedProtocol, Limits
from litevl.config import Config
from litevl.media.budgets import BytesInFlight

STREAMS = (1, 16, 256)
BUDGET_TOKENS_S = 10_000
FRAMES = {1: 10_000, 16: 2000, 256: 200}  # a stream
END = b"data: [DONE]"


# The server's process --------------------------------------------------------------------------


def litevl_app() -> ASGIApp:
    """Everything of litevl but the model."""
    config = Config(no_api_key=True, max_num_seqs=max(STREAMS))
    service = Service(config)
    frames = FrameCounter()
    service.attach(null_backend(NullEngine(frames)))
    app = create_app(config, service, BytesInFlight(MAX_BYTES_IN_FLIGHT, "requests"), Records())
    return frames.count_in(app)


def bare_app() -> ASGIApp:
    """A chunk made by `json.dumps` for every token, and nothing else."""

    async def answer(request: Request) -> Response:
        count = json.loads(await request.body())["max_tokens"]
        return StreamingResponse(frames(count), media_type="text/event-stream")

    async def frames(count: int) -> AsyncIterator[str]:
        for _ in range(count):
            await asyncio.sleep(0)  # a turn of the loop for a token, as a source of tokens takes
            yield f"data: {json.dumps(CHUNK)}\n\n"
        yield "data: [DONE]\n\n"

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


CHUNK = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "null",
    "choices": [
        {"index": 0, "delta": {"content": "x"}, "logprobs": None, "finish_reason": None},
    ],
}


def serve(make_app: Callable[[], ASGIApp], core: int, port: Connection) -> None:
    """Listen on a free port, tell it, and serve until killed; on one core."""
    os.sched_setaffinity(0, {core})
    listener = socket.create_server(("127.0.0.1", 0), backlog=max(STREAMS))
    port.send(listener.getsockname()[1])
    app = make_app()
    http: Any = partial(GuardedProtocol, limits=Limits()) if make_app is litevl_app else "h11"
    settings = uvicorn.Config(
        app, http=http, ws="none", log_config=None, access_log=False, server_header=False
    )
    uvicorn.Server(settings).run(sockets=[listener])


# The clients' process --------------------------------------------------------------------------


def measure(make_app: Callable[[], ASGIApp], cores: list[int], shapes: dict[int, int]) -> Any:
    """Tokens and frames a second for each number of streams."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=serve, args=(make_app, cores[0], sender), daemon=True)
    process.start()
    try:
        port = receiver.recv()
        _stream(port, 1, 10)  # the first request pays for what is imported late
        return {streams: _rates(port, streams, count) for streams, count in shapes.items()}
    finally:
        process.terminate()
        process.join()


def _rates(port: int, streams: int, count: int) -> dict[str, float]:
    seconds, bodies = _stream(port, streams, count)
    frames = sum(body.count(b"data: {") for body in bodies)
    complete = sum(END in body for body in bodies)
    if complete != streams:
        raise RuntimeError(f"{streams - complete} of {streams} streams broke off")
    return {"tokens_s": streams * count / seconds, "frames_s": frames / seconds}


def _stream(port: int, streams: int, count: int) -> tuple[float, list[bytes]]:
    """Read so many streams at once; the clock runs from the first request to the last byte."""
    waiting = selectors.DefaultSelector()
    bodies: list[list[bytes]] = [[] for _ in range(streams)]
    request = _request(count)
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(streams)]
    began = perf_counter()
    for client, body in zip(clients, bodies, strict=True):
        waiting.register(client, selectors.EVENT_READ, body)
        client.sendall(request)
    while waiting.get_map():
        for key, _ in waiting.select():
            data = key.fileobj.recv(2**18)  # type: ignore[union-attr]  # it is a socket
            key.data.append(data)
            if not data:
                waiting.unregister(key.fileobj)
    seconds = perf_counter() - began
    for client in clients:
        client.close()
    return seconds, [b"".join(body) for body in bodies]


def _request(count: int) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"messages": messages, "max_tokens": count, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__).parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[1:]) or set(cores))
    shapes = {1: 1000, 16: 200} if args.quick else FRAMES
    found = {}
    for name, make_app in (("litevl", litevl_app), ("starlette", bare_app)):
        tell(f"{name} ...")
        found[name], _ = undisturbed(partial(measure, make_app, cores, shapes))
    os.sched_setaffinity(0, set(cores))
    rows = [(n, s, r["tokens_s"], r["frames_s"]) for n, by in found.items() for s, r in by.items()]
    table(("server", "streams", "tokens/s", "frames/s"), rows)
    finish("server", {"budget_tokens_s": BUDGET_TOKENS_S, **found}, args.threads)


if __name__ == "__main__":
    main()
