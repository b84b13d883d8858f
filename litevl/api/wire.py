"""HTTP/1.1 with bounds: uvicorn's h11 protocol, limited in time, size and number.

`serving.py` hands it to uvicorn, which makes one for each connection. It decides what may reach the
application at all, and how long a client may keep it waiting. Knows no routes, no keys and no
application; what it refuses is answered with the error object of every other refusal.

Time is watched by timers of the event loop: one for what is read, one for what is written. A
connection that sends a whole small request at once costs neither.
"""

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from litevl.api.middleware import new_request_id, request_id
from litevl.api.responses import error_response
from litevl.errors import (
    HeadTooLargeError,
    InvalidHTTPError,
    LitevlError,
    RequestTimeoutError,
    UnavailableError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may take. Tests shrink them; nothing else has a reason to."""

    head_bytes: int = 16 * 2**10  # as nginx, h11 and hypercorn: browsers send a tenth of it
    headers: int = 100  # as gunicorn
    head_s: float = 10.0  # from the accept, or a head's first byte: one packet, seldom two
    body_rate: int = 16 * 2**10  # bytes a second: a picture takes a minute, then it will never end
    body_window_s: float = 10.0  # over which the rate is measured: radio links pause for seconds
    free_chunks: int = 1000  # of a chunked body, of any size
    chunk_bytes: int = 64  # on average beyond these: each costs as much as a packet
    idle_s: int = 20  # longer than pooled clients keep a connection they may still use
    write_s: float = 60.0  # without taking a byte, when megabytes wait in the kernel already
    unread_s: float = 30.0  # for the rest of a body that was answered without being read
    linger_s: float = 2.0  # after a refusal: a close at once would reset it before it is read
    ahead: int = 64 * 2**10  # bytes of later requests that are read while one is answered
    connections: int = 1024  # each costs a file and some 10 KiB; sixteen times what runs at once
    refused_connections: int = 256  # beyond these, told so, if none of the others is silent


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()  # the rest of a head, the handshake before it included
    BODY = auto()  # more of a body that the application reads
    UNREAD = auto()  # more of a body that nobody wants: its answer is out
    ANSWER = auto()  # the application: no limit, some models think for minutes
    IDLE = auto()  # another request, by uvicorn's own timer
    REFUSED = auto()  # the client to hear why


# A head as it was sent: what frames the body may stand once, and in one plain form.
_HEAD_END = re.compile(rb"\n\r?\n")
# To some servers the end of a line, or a header of its own; to others not.
_ODD_LINE = re.compile(rb"(?<!\r)\n|\n[ \t]")
_FRAMING = re.compile(rb"^(?:content-length|transfer-encoding)[ \t]*:[^\r\n]*", re.I | re.M)
_PLAIN = re.compile(
    rb"content-length:[ \t]*[0-9]+[ \t]*|transfer-encoding:[ \t]*chunked[ \t]*", re.I
)
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,8}(?:;[\t -~\x80-\xff]*)?[ \t]*")  # a size below 4 GiB


class StrictConnection(h11.Connection):
    """h11, without its patience for large heads, tiny chunks, and lengths given twice.

    What two servers in a row could read differently would let one request hide in another.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(h11.SERVER, limits.head_bytes)
        self.fault: LitevlError | None = None  # why the last RemoteProtocolError was raised
        self._limits = limits
        self._chunks = self._bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE and (received := self.trailing_data[0]):
            self._refuse_if(_fault_of(received, self._limits))
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            if isinstance(self._reader, ChunkedReader):
                self._reader = StrictChunks(self._limits, self._refuse_if)
            if event.http_version not in (b"1.0", b"1.1"):
                self._refuse_if(InvalidHTTPError("This server speaks HTTP/1.1."))
        elif isinstance(event, h11.Data):
            self._refuse_if(self._fault_of_chunk(event))
        return event

    def _fault_of_chunk(self, data: h11.Data) -> LitevlError | None:
        self._chunks += data.chunk_start
        self._bytes += len(data.data)
        beyond = self._chunks - self._limits.free_chunks
        if beyond > 0 and self._bytes < beyond * self._limits.chunk_bytes:
            return InvalidHTTPError("The body comes in too many tiny chunks.")
        return None

    def _refuse_if(self, fault: LitevlError | None) -> None:
        if fault:
            self.fault = fault
            raise h11.RemoteProtocolError(fault.message)


class StrictChunks(ChunkedReader):
    """h11's reader of chunked bodies, for lines that end where every server sees an end."""

    def __init__(self, limits: Limits, refuse_if: Callable[[LitevlError | None], None]) -> None:
        super().__init__()
        self._limits, self._refuse_if = limits, refuse_if

    def __call__(self, buffer: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._reading_trailer:
            # What may end at once begins behind a line: its end is found as that of a head.
            received = b"\r\n" + bytes(buffer._data[: self._limits.head_bytes + 4])
            self._refuse_if(_fault_of_lines(received, self._limits))
        elif not self._bytes_in_chunk:
            start = len(self._bytes_to_discard)
            end = buffer._data.find(b"\r\n", start)
            if end >= 0 and not _CHUNK.fullmatch(buffer._data, start, end):
                message = "A chunk begins with its size in at most eight hexadecimal digits."
                self._refuse_if(InvalidHTTPError(message))
        return super().__call__(buffer)


def _fault_of(received: bytes, limits: Limits) -> LitevlError | None:
    """What is wrong with the head that these bytes begin with; of an unfinished one, its size."""
    if fault := _fault_of_lines(received, limits):
        return fault
    end = _HEAD_END.search(received)
    framing = _FRAMING.findall(received, 0, end.start()) if end else []
    if len(framing) > 1 or not all(map(_PLAIN.fullmatch, framing)):
        return InvalidHTTPError(
            "Give one plain `Content-Length`, or `Transfer-Encoding: chunked`, and not both."
        )
    return None


def _fault_of_lines(received: bytes, limits: Limits) -> LitevlError | None:
    """What is wrong with the lines up to an empty one, in a head or behind the chunks of a body."""
    end = _HEAD_END.search(received)
    size = end.start() if end else len(received)
    if size > limits.head_bytes or received.count(b"\n", 0, size) > limits.headers:
        return HeadTooLargeError(
            f"The head of a request has at most {limits.headers} headers and {limits.head_bytes} "
            "bytes here, and so has what follows a body in chunks."
        )
    if end and _ODD_LINE.search(received, 0, end.end()):  # once: packets would pay for all before
        return InvalidHTTPError("The lines of a head end in CR LF and begin with a name.")
    return None


class GuardedProtocol(H11Protocol):
    """One connection; uvicorn is given it with its limits bound, for `uvicorn.Config(http=...)`.

    It shakes hands for TLS itself: asyncio would tell of a connection only after that, and whoever
    never begins it would be counted nowhere.
    """

    def __init__(
        self,
        *args: Any,
        limits: Limits,
        tls: ssl.SSLContext | None = None,
        note: Callable[[str, str | None], None] = lambda why, request: None,
        **kwargs: Any,
    ) -> None:
        """`note` hears why the server ends the connection, the code of the error sent or one word,
        and the id that was sent with it."""
        super().__init__(*args, **kwargs)
        self.limits, self.tls, self.note = limits, tls, note
        self.access_log = False  # uvicorn's tells queries; a request is told by `records.py`
        self.conn: StrictConnection = StrictConnection(self.limits)
        self.connections: set[GuardedProtocol]  # type: ignore[assignment]
        self.phase = Phase.ANSWER  # there is nothing to wait for yet
        self.since = 0.0  # when it was entered
        self._received = 0  # bytes in the present window of a body
        self._unsent = 0  # bytes left over when the write timer was set
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._early = b""  # what came right behind the handshake

    # What the transport calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does it only where the listener was made with IPPROTO_TCP by name. Without it a
        # frame waits in the kernel until the client has confirmed the one before: 40 ms.
        if raw := transport.get_extra_info("socket"):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        surplus = len(self.connections) - self.limits.connections
        if surplus > 0 and not self._make_room():
            if surplus > self.limits.refused_connections or self.tls:
                self._cut("too_many_connections")
            else:
                self._refuse(UnavailableError("Too many connections are open; try again later."))
            return
        self._follow()
        if self.tls:
            self._handshake = self.loop.create_task(self._shake_hands(transport, self.tls))
        else:
            self._bound_writing()

    async def _shake_hands(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        """Go on over TLS, within the time that the first head has."""
        try:
            secured = await self.loop.start_tls(
                transport,
                self,
                tls,
                server_side=True,
                ssl_handshake_timeout=self.limits.head_s,
                ssl_shutdown_timeout=self.limits.linger_s,
            )
        except OSError:
            if self.phase is not Phase.REFUSED:
                self.note("no_tls", None)
            secured = None
        self._handshake = None
        if secured is None:
            self.connection_lost(None)  # which asyncio does not tell of before the handshake
            return
        super().connection_made(secured)
        self._bound_writing()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def _bound_writing(self) -> None:
        """Whatever the kernel does not take at once pauses the writer, and starts its deadline."""
        # Not zero: asyncio's TLS would pause for an empty buffer, and never go on.
        self.transport.set_write_buffer_limits(high=1, low=0)

    def _make_room(self) -> bool:
        """Close the connection that has been silent for longest; False where all have work.

        Who merely keeps connections open cannot keep others out, health checks least of all.
        """
        silent = [each for each in self.connections if each.phase in (Phase.HEAD, Phase.IDLE)]
        if silent:
            longest = min(silent, key=lambda each: each.since)
            longest._cut("made_room")
            self.connections.discard(longest)  # at once: the loop may tell it after many more came
        return bool(silent)

    def data_received(self, data: bytes) -> None:
        if self._handshake:
            self._early += data
        elif self.phase is not Phase.REFUSED:
            self._received += len(data)
            super().data_received(data)
            self._follow()
            # uvicorn stops reading at the next request, and nobody would notice who leaves then.
            if self.phase is Phase.ANSWER and len(self.conn.trailing_data[0]) < self.limits.ahead:
                self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = Phase.REFUSED
        self._set_read_timer(None)
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None

    # What uvicorn calls --------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self.conn.fault or InvalidHTTPError("This is no HTTP/1.1 request."))

    # Deadlines -----------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Notice what the connection waits for now, and until when."""
        phase = self._phase_now()
        if phase is self.phase or self.transport.is_closing():
            return
        self.phase = phase
        self.since = self.loop.time()
        self._received = 0
        match phase:
            case Phase.HEAD:
                self._set_read_timer(self.limits.head_s, self._end_late_head)
            case Phase.BODY:
                self._set_read_timer(self.limits.body_window_s, self._check_rate)
            case Phase.UNREAD:
                self._unset_keepalive_if_required()
                self._set_read_timer(self.limits.unread_s, partial(self._cut, "unread_body"))
            case _:
                self._set_read_timer(None)
        if phase is Phase.IDLE and self.timeout_keep_alive_task is None:
            # uvicorn sets it when it has answered; where a body went on after that, it is gone.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _phase_now(self) -> Phase:
        if self.phase is Phase.REFUSED:
            return Phase.REFUSED
        if self.conn.their_state is h11.IDLE:
            has_begun = self.cycle is None or self.conn.trailing_data[0]
            return Phase.HEAD if has_begun else Phase.IDLE
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.UNREAD if self.cycle.response_complete else Phase.BODY
        return Phase.ANSWER

    def _end_late_head(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(RequestTimeoutError("The head of the request did not come in time."))
        else:
            self._cut("no_request")  # browsers open connections that they may never use

    def _check_rate(self) -> None:
        least = self.limits.body_rate * self.limits.body_window_s
        # Where reading is paused it is the application that is late.
        if self._received < least and not self.flow.read_paused:
            self._refuse(RequestTimeoutError("The body of the request came too slowly."))
        else:
            self._received = 0
            self._set_read_timer(self.limits.body_window_s, self._check_rate)

    def _watch_writing(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.limits.write_s, self._check_writing)

    def _check_writing(self) -> None:
        """Nothing is added while the writer is paused: what is left over can only shrink."""
        if self.transport.get_write_buffer_size() < self._unsent:
            self._watch_writing()
        else:
            if raw := self.transport.get_extra_info("socket"):
                # Or the kernel would keep what it has taken, megabytes, for minutes more.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._cut("unread_answer")  # the application hears that its client is gone

    def _set_read_timer(self, seconds: float | None, then: Any = None) -> None:
        if self._read_timer:
            self._read_timer.cancel()
        self._read_timer = None if seconds is None else self.loop.call_later(seconds, then)

    # Refusals ------------------------------------------------------------------------------------

    def _refuse(self, error: LitevlError) -> None:
        """Answer and close, but not before the client has had the time to read it."""
        request = self._request_id()
        self.note(error.code, request)
        self.phase = Phase.REFUSED
        self._unset_keepalive_if_required()
        can_answer = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not can_answer or self.transport.is_closing():
            self.transport.abort()
            return
        self.transport.write(_as_bytes(error, request))
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # the client is gone, and the loop has not heard of it yet
            self.transport.abort()
        else:
            self._set_read_timer(self.limits.linger_s, self.transport.abort)

    def _request_id(self) -> str:
        """That of the request whose body comes, or a new one."""
        has_one = self.cycle and not self.cycle.response_complete
        return request_id(dict(self.cycle.scope)) if has_one else new_request_id()

    def _cut(self, why: str) -> None:
        """Close without a word."""
        self.note(why, None)
        self.phase = Phase.REFUSED
        self.transport.abort()


def _as_bytes(error: LitevlError, request: str) -> bytes:
    """A whole answer: the state of the connection may be beyond what h11 would send."""
    answer = error_response(error)
    answer.headers.update({"connection": "close", "x-request-id": request})
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in answer.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])
