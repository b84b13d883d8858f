"""What the deadlines of the wire spare: slow clients that are on their way. Time stands still."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from litevl.api.wire import GuardedProtocol, Limits

LIMITS = Limits(head_s=10, body_rate=100, body_window_s=10, write_s=60, unread_s=30, idle_s=20)
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n"


@dataclass(eq=False)
class Timer:
    due: float
    callback: Callable[[], None]
    clock: "Clock"

    def cancel(self) -> None:
        self.clock.timers.discard(self)


@dataclass
class Clock:
    """The part of an event loop that a connection uses, with time that stands still."""

    now: float = 0.0
    timers: set[Timer] = field(default_factory=set)
    num_set: int = 0

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now + delay, callback, self)
        self.timers.add(timer)
        self.num_set += 1
        return timer

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for timer in sorted(self.timers, key=lambda timer: timer.due):
            if timer.due <= self.now and timer in self.timers:
                self.timers.discard(timer)
                timer.callback()


class Transport(asyncio.Transport):
    """A client that takes everything, and leaves `unsent` bytes where a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.is_cut = self.is_closed = self.is_reset = False

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert (high, low) == (1, 0)  # whatever is left unsent pauses the writer

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self.is_reset:
            raise OSError("the client has reset the connection")

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_cut = self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


class Connection:
    """A client's view of one connection to an application that reads when it may."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.transport = Transport()
        self.may_read = asyncio.Event()
        self.may_read.set()
        config = uvicorn.Config(
            self.answer, interface="asgi3", log_config=None, timeout_keep_alive=LIMITS.idle_s
        )
        self.state = ServerState()
        self.protocol: Any = GuardedProtocol(
            config, self.state, {}, limits=LIMITS, _loop=self.clock
        )
        self.protocol.connection_made(self.transport)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.may_read.wait()
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.request":
            headers = [(b"content-length", b"2")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"ok"})

    def leave(self) -> None:
        self.transport.is_closed = True
        self.protocol.connection_lost(None)

    async def say(self, data: bytes) -> None:
        if data and not self.transport.is_closed:
            self.protocol.data_received(data)
        for _ in range(5):  # let the application take it
            await asyncio.sleep(0)

    @property
    def heard(self) -> bytes:
        return self.transport.written[:12]


@pytest.mark.anyio
async def test_a_head_has_its_time_from_its_first_byte_however_it_drips() -> None:
    one = Connection()
    await one.say(GET)
    assert one.heard == b"HTTP/1.1 200"
    one.transport.written = b""
    one.clock.advance(19)
    await one.say(GET[:1])
    for index in range(1, 10):
        one.clock.advance(1)
        await one.say(GET[index : index + 1])
    assert one.heard == b""
    one.clock.advance(1)
    assert one.heard == b"HTTP/1.1 408"


@pytest.mark.anyio
async def test_a_body_may_be_as_slow_as_the_least_rate_for_as_long_as_it_takes() -> None:
    one = Connection()
    await one.say(POST)
    for _ in range(4):
        await one.say(b" " * 1000)
        one.clock.advance(10)
        assert one.heard == b""
    await one.say(b" " * 999)
    one.clock.advance(10)
    assert one.heard == b"HTTP/1.1 408"


@pytest.mark.anyio
async def test_a_body_that_has_come_is_not_watched_any_more() -> None:
    one = Connection()
    one.may_read.clear()
    await one.say(POST + b" " * 5000)
    one.clock.advance(1000)
    one.may_read.set()
    await one.say(b"")
    assert one.heard == b"HTTP/1.1 200"


@pytest.mark.anyio
async def test_a_body_that_the_application_is_slow_to_read_is_no_fault_of_the_client() -> None:
    one = Connection()
    one.may_read.clear()
    await one.say(POST.replace(b"5000", b"100000") + b" " * 70_000)
    one.clock.advance(1000)
    assert one.heard == b""
    one.may_read.set()
    await one.say(b" " * 30_000)
    assert one.heard == b"HTTP/1.1 200"


@pytest.mark.anyio
async def test_a_reader_is_kept_while_it_takes_anything() -> None:
    one = Connection()
    one.may_read.clear()
    await one.say(GET)
    one.transport.unsent = 100
    one.protocol.pause_writing()
    for unsent in (99, 50, 1):
        one.transport.unsent = unsent
        one.clock.advance(60)
        assert not one.transport.is_cut
    one.clock.advance(60)
    assert one.transport.is_cut
    one.leave()  # as the transport would tell: or the application waits for its reader for ever


@pytest.mark.anyio
async def test_a_reader_that_has_caught_up_has_no_deadline() -> None:
    one = Connection()
    one.transport.unsent = 100
    one.protocol.pause_writing()
    one.protocol.resume_writing()
    await one.say(GET)
    one.clock.advance(19)
    assert not one.transport.is_closed


@pytest.mark.anyio
async def test_an_idle_connection_is_closed_by_uvicorn() -> None:
    one = Connection()
    await one.say(GET)
    one.clock.advance(20)
    assert one.transport.is_closed and not one.transport.is_cut


@pytest.mark.anyio
async def test_a_small_request_sets_no_timer_but_that_of_the_idle_connection_after_it() -> None:
    one = Connection()
    await one.say(GET)
    num_set = one.clock.num_set
    for _ in range(10):
        await one.say(GET)
    assert one.clock.num_set - num_set == 10
    assert len(one.clock.timers) == 1


@pytest.mark.anyio
async def test_who_resets_the_connection_before_a_refusal_is_cut_off() -> None:
    for sent, wait in ((GET[:5], 10), (POST, 10), (b"nonsense\r\n\r\n", 0)):
        one = Connection()
        one.transport.is_reset = True
        await one.say(sent)
        one.clock.advance(wait)
        assert one.transport.is_cut


@pytest.mark.anyio
async def test_a_connection_that_is_gone_leaves_no_timer() -> None:
    for sent in (b"", GET[:5], GET, POST, b"nonsense\r\n\r\n"):
        one = Connection()
        await one.say(sent)
        one.protocol.pause_writing()
        one.leave()
        await one.say(b"")
        assert not one.clock.timers


# Whatever comes --------------------------------------------------------------------------------

FRAGMENTS = (
    *(GET, POST, b"GET / HTTP/1.1\r\n", b"host: x\r\n", b"content-length: 5\r\n", b"\r\n", b"\n"),
    *(b"transfer-encoding: chunked\r\n", b"5\r\nabcde\r\n", b"0\r\n\r\n", b"abcde", b"HEAD", b":"),
    *(
        b"connection: close\r\n",
        b"expect: 100-continue\r\n",
        b"upgrade: websocket\r\n",
        b"a" * 9000,
    ),
)
moves = st.lists(
    st.one_of(
        st.sampled_from(FRAGMENTS),
        st.binary(max_size=20),
        st.sampled_from(["wait", "wait long", "stop reading", "read", "hold", "go"]),
    ),
    max_size=20,
)


async def play(some: list[bytes | str]) -> None:
    one = Connection()
    actions: dict[str, Callable[[], object]] = {
        "wait": lambda: one.clock.advance(9),
        "wait long": lambda: one.clock.advance(61),
        "stop reading": lambda: one.protocol.flow.write_paused or one.protocol.pause_writing(),
        "read": one.protocol.resume_writing,
        "hold": one.may_read.clear,
        "go": one.may_read.set,
    }
    for move in some:
        if isinstance(move, bytes):
            await one.say(move)
        elif not one.transport.is_closed:
            actions[move]()
            await one.say(b"")
    one.may_read.set()
    one.leave()
    await one.say(b"")
    assert not one.clock.timers and not one.state.tasks and not one.state.connections
    assert_answers(one.transport.written)


def assert_answers(written: bytes) -> None:
    """Nothing but answers, none of them our fault."""
    statuses = re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", written)
    assert set(statuses) <= {b"100", b"200", b"400", b"408", b"431"}
    assert not written or written.startswith(b"HTTP/1.1 ")


@given(moves)
def test_no_bytes_in_no_order_break_it_or_leave_anything_behind(some: list[bytes | str]) -> None:
    asyncio.run(play(some))
