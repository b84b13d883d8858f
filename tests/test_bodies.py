"""The budget of bodies in flight: whom it refuses and whom not, and that all comes back."""

import asyncio
import gc
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from fakes import KEY, PATIENCE, Rig, assert_error, body, request_bytes, running
from litevl.api.bodies import BodyLimit, let_go_of_body
from litevl.errors import LitevlError, RequestTooLargeError, UnavailableError
from litevl.media.budgets import BytesInFlight

LIMIT, BUDGET, UNCOUNTED = 100, 250, 10


@dataclass(frozen=True)
class Client:
    """What one request does: `declared` bytes, or chunks, of which some may never come."""

    pieces: tuple[int, ...]
    is_declared: bool
    leaves: bool = False  # before the last piece
    app: str = "reads"

    @property
    def declared(self) -> int:
        return sum(self.pieces) if self.is_declared else 0


clients = st.builds(
    Client,
    st.lists(st.integers(0, LIMIT + 10), max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["reads", "lets go", "fails", "reads nothing"]),
)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["client"].app != "reads nothing":
        await Request(scope, receive).body()
    if scope["client"].app == "lets go":
        let_go_of_body(scope)
        await asyncio.sleep(0)
    if scope["client"].app == "fails":
        raise ValueError("planted")


async def ask(limit: BodyLimit, client: Client) -> Exception | None:
    """What a request ends with."""
    length = [(b"content-length", b"%d" % client.declared)] if client.is_declared else []
    scope = {"type": "http", "headers": length, "client": client}
    pieces = client.pieces[:-1] if client.leaves else client.pieces
    messages: list[Message] = [
        {"type": "http.request", "body": bytes(size), "more_body": True} for size in pieces
    ]
    end: Message = {"type": "http.request", "body": b"", "more_body": False}
    messages.append({"type": "http.disconnect"} if client.leaves else end)
    left = iter(messages)

    async def receive() -> Message:
        await asyncio.sleep(0)
        return next(left)

    async def send(message: Message) -> None:
        pass

    try:
        await limit(scope, receive, send)
    except (LitevlError, ClientDisconnect, ValueError) as error:
        return error
    return None


async def ask_all(limit: BodyLimit, some: Iterable[Client], cancelled: Iterable[int]) -> None:
    tasks = [asyncio.create_task(ask(limit, client)) for client in some]
    for index in cancelled:
        await asyncio.sleep(0)
        tasks[index % len(tasks)].cancel()
    await asyncio.wait(tasks)


@given(st.lists(clients, min_size=1, max_size=8), st.lists(st.integers(0, 7), max_size=3))
def test_whatever_becomes_of_requests_the_budget_is_whole_again(
    some: list[Client], cancelled: list[int]
) -> None:
    budget = BytesInFlight(BUDGET, "requests")
    asyncio.run(ask_all(BodyLimit(application, LIMIT, budget, UNCOUNTED), some, cancelled))
    assert budget.used == 0


@given(st.lists(st.integers(0, LIMIT), max_size=6), st.booleans())
def test_no_more_is_taken_than_there_is(sizes: list[int], is_declared: bool) -> None:
    budget, most = BytesInFlight(BUDGET, "requests"), 0

    async def hold(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal most
        await Request(scope, receive).body()
        most = max(most, budget.used)
        await asyncio.sleep(0.001)

    limit = BodyLimit(hold, LIMIT, budget, UNCOUNTED)

    async def ask_together() -> list[Exception | None]:
        return await asyncio.gather(*(ask(limit, Client((size,), is_declared)) for size in sizes))

    ends = asyncio.run(ask_together())
    assert most <= BUDGET and budget.used == 0
    refused = [each for each in ends if each]
    assert all(isinstance(each, UnavailableError) for each in refused)
    assert bool(refused) == (sum(max(size - UNCOUNTED, 0) for size in sizes) > BUDGET)


@pytest.mark.parametrize("is_declared", [True, False])
def test_one_request_may_take_no_more_than_its_limit(is_declared: bool) -> None:
    budget = BytesInFlight(BUDGET, "requests")
    end = asyncio.run(
        ask(BodyLimit(application, LIMIT, budget, UNCOUNTED), Client((60, 41), is_declared))
    )
    assert isinstance(end, RequestTooLargeError)
    assert budget.used == 0


# Through the wire ------------------------------------------------------------------------------


LARGE = " " * 2**20  # behind a JSON value


def full(rig: Rig) -> None:
    """Leave ten bytes."""
    rig.server.budget.take(4 * 96 * 2**20 - 10)


def test_what_goes_beyond_the_budget_is_503_and_reaches_no_engine() -> None:
    with running() as rig:
        full(rig)
        pieces = (LARGE.encode() for _ in range(2))
        for content in (json.dumps(body()) + LARGE, pieces):
            answer = rig.client.post("/v1/chat/completions", content=content)
            assert_error(answer, 503, "server_is_overloaded")
            assert answer.headers["retry-after"] == "2"
        assert rig.client.get("/health").status_code == 200
        assert rig.engine.added == []


def test_a_text_is_answered_though_the_budget_is_spent() -> None:
    with running() as rig:
        full(rig)
        assert rig.chat(messages=[{"role": "user", "content": "a" * 500}]).status_code == 200


def test_what_is_declared_and_has_not_come_keeps_nobody_out() -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n"
    head += f"content-length: {96 * 2**20}\r\nexpect: 100-continue\r\n\r\n"
    with running() as rig, ExitStack() as uploads:
        for _ in range(4):
            upload = uploads.enter_context(rig.connect())
            upload.sendall(head.encode())
            assert upload.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"  # the application reads it
            upload.sendall(b" " * 10)
        assert rig.chat().status_code == 200
        large = rig.client.post("/v1/chat/completions", content=json.dumps(body()) + LARGE)
        assert large.status_code == 200
        assert rig.server.budget.used == 0


def holders(marker: bytes, but: object) -> list[object]:
    """What holds bytes or a text with this in it, but for one that the test has itself."""
    found = []
    for holder in gc.get_objects():
        for each in gc.get_referents(holder):
            # Not `isinstance`, which asks objects that warn whoever asks.
            text = each.encode(errors="replace") if type(each) is str else each
            if type(text) in (bytes, bytearray) and each is not but and marker in text:
                found.append(holder)
    return found


@pytest.mark.parametrize("stream", [True, False])
def test_a_body_counts_and_is_kept_until_its_prompt_is_made(stream: bool) -> None:
    with running() as rig, rig.connect() as connection:
        rig.engine.hold()
        rig.preprocessor.may_go.clear()
        request = request_bytes(stream=stream, user="a" * 2**20)
        connection.sendall(request)
        assert rig.preprocessor.entered.wait(PATIENCE)
        assert rig.server.budget.used == len(request.partition(b"\r\n\r\n")[2]) - 256 * 2**10
        rig.preprocessor.may_go.set()
        rig.engine.wait_until(lambda engine: engine.num_running == 1)
        assert rig.server.budget.used == 0
        assert holders(b"a" * 2**20, request) == []


def test_a_server_that_takes_larger_bodies_has_room_for_one() -> None:
    with running(max_body_size=2**30) as rig:
        rig.server.budget.take(2**30)
        large = rig.client.post("/v1/chat/completions", content=json.dumps(body()) + LARGE)
        assert_error(large, 503, "server_is_overloaded")
