"""The wire from outside: raw bytes, slow clients, too many of them. Deadlines are tiny here, and no
test measures time: it waits for what must happen."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from fakes import ANSWER, KEY, PATIENCE, Rig, request_bytes, running, say
from litevl.api.wire import GuardedProtocol, Limits

POST = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n".encode()
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
SMALL = Limits(head_bytes=1000, headers=10, free_chunks=10)
HASTY = Limits(head_s=0.1, body_window_s=0.1, write_s=0.1, unread_s=0.1, idle_s=0)


@pytest.fixture(scope="module")
def small() -> Iterator[Rig]:
    with running(limits=SMALL) as rig:
        yield rig


@pytest.fixture(scope="module")
def hasty() -> Iterator[Rig]:
    with running(limits=HASTY) as rig:
        yield rig


def error_of(answer: bytes, status: int) -> dict[str, Any]:
    """The error that the whole of a raw answer is; the server closes after it."""
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *headers = head.decode().lower().split("\r\n")
    assert first.startswith(f"http/1.1 {status} ")
    assert {"connection: close", "content-type: application/json"} <= set(headers)
    error: dict[str, Any] = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes, or cuts the connection off."""
    received = b""
    try:
        while piece := connection.recv(2**16):
            received += piece
    except ConnectionResetError:
        pass
    return received


# Heads -----------------------------------------------------------------------------------------

BAD_HEADS = {
    "two lengths that agree": POST + b"content-length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths": POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a list of lengths": POST + b"content-length: 2, 2\r\n\r\n{}",
    "a signed length": POST + b"content-length: +2\r\n\r\n{}",
    "a negative length": POST + b"content-length: -2\r\n\r\n{}",
    "a length in hex": POST + b"content-length: 0x2\r\n\r\n{}",
    "a folded length": POST + b"content-length:\r\n 2\r\n\r\n{}",
    "an empty length": POST + b"content-length:\r\n\r\n{}",
    "an endless length": POST + b"content-length: " + b"9" * 30 + b"\r\n\r\n{}",
    "length and chunks": POST
    + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks and length": POST
    + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks twice": POST
    + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a disguised encoding": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + b"content-length : 2\r\n\r\n{}",
    "a bad chunk size": POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk without its end": POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}}}0\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "a line that ends in LF": GET + b"a: b\ncontent-length: 5\r\n\r\n",
    "a line that goes on": GET + b"a: b\r\n\ttransfer-encoding: chunked\r\n\r\n",
    "no CR at all": GET.replace(b"\r", b"") + b"\n",
    "two hosts": GET + b"host: y\r\n\r\n",
    "a zero byte": GET + b"a: \0\r\n\r\n",
    "a bare line": GET + b"nothing\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "another version": b"GET /health HTTP/3.7\r\nhost: x\r\n\r\n",
    "an empty line first": b"\r\n" + GET + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20),
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("request_", BAD_HEADS.values(), ids=BAD_HEADS)
def test_what_is_no_plain_request_is_refused_in_json(small: Rig, request_: bytes) -> None:
    error = error_of(small.exchange(request_), 400)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")
    assert small.engine.added == []


LARGE_HEADS = {
    "one long header": GET + b"a: " + b"b" * 1000 + b"\r\n\r\n",
    "a long target": b"GET /" + b"a" * 1000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    "many headers": GET + b"a: b\r\n" * 10 + b"\r\n",
    "folded ones": GET + b"a: b\r\n" + b" c\r\n" * 10 + b"\r\n",
    "no end": GET + b"a: " + b"b" * 1000,
    "no line": b"a" * 1001,
    "more than a packet": GET + b"a: " + b"b" * 10**6,
}


@pytest.mark.parametrize("request_", LARGE_HEADS.values(), ids=LARGE_HEADS)
def test_a_head_beyond_its_limits_is_431(small: Rig, request_: bytes) -> None:
    error = error_of(small.exchange(request_), 431)
    assert (error["type"], error["code"]) == ("invalid_request_error", "head_too_large")


def test_a_head_at_its_limits_is_read(small: Rig) -> None:
    ten = GET + b"a: b\r\n" * 8 + b"connection: close\r\n"
    assert small.exchange(ten + b"\r\n").startswith(b"HTTP/1.1 200 ")
    long = GET + b"connection: close\r\na: "
    long += b"b" * (1000 - len(long) - 1)
    assert small.exchange(long + b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("pieces", [[1], [7, 64]])
def test_a_request_may_come_in_pieces(small: Rig, pieces: list[int]) -> None:
    request = GET.replace(b"GET", b"Get") + b"connection: close\r\n\r\n"
    with small.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), pieces[-1]):
            connection.sendall(request[start : start + pieces[-1]])
        assert read_all(connection).endswith(b'{"status":"ready"}')


def test_requests_may_follow_one_another_unasked(small: Rig) -> None:
    last = GET + b"connection: close\r\n\r\n"
    answers = small.exchange(request_bytes() + GET + b"\r\n" + request_bytes() + last)
    assert answers.count(b"HTTP/1.1 200 ") == 4
    assert answers.count(json.dumps(ANSWER, ensure_ascii=False).encode()) == 2


def test_no_answer_waits_in_the_kernel_for_the_last_one_to_be_confirmed(small: Rig) -> None:
    with small.connect() as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(13) == b"HTTP/1.1 200 "
        for each in small.server.server_state.connections:
            server_side = each.transport.get_extra_info("socket")
            assert server_side.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Slow clients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"", GET + b"\r\n"])
def test_a_head_that_does_not_end_is_408(before: bytes) -> None:
    with running(limits=Limits(head_s=0.1, idle_s=60)) as rig:
        answer = rig.exchange(before + GET)
    if before:
        assert answer.startswith(b"HTTP/1.1 200 ")
        answer = answer[answer.index(b"HTTP/1.1 408") :]
    assert error_of(answer, 408)["code"] == "request_timeout"


def test_a_head_is_not_looked_through_before_it_ends(hasty: Rig) -> None:
    odd = GET + b"a: b\nc: d\r\n"
    assert error_of(hasty.exchange(odd), 408)["code"] == "request_timeout"
    assert error_of(hasty.exchange(odd + b"\r\n"), 400)["code"] == "invalid_http"


def test_a_connection_that_never_speaks_is_closed_without_a_word(hasty: Rig) -> None:
    assert hasty.exchange(b"") == b""


def test_a_connection_that_has_nothing_more_to_ask_is_closed(hasty: Rig) -> None:
    answer = hasty.exchange(GET + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b'{"status":"ready"}')


@pytest.mark.parametrize(
    "framing", [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n9\r\n{"]
)
def test_a_body_that_stalls_is_408_and_reaches_no_engine(hasty: Rig, framing: bytes) -> None:
    num_added = len(hasty.engine.added)
    answer = hasty.exchange(POST + framing)
    assert error_of(answer, 408)["code"] == "request_timeout"
    assert len(hasty.engine.added) == num_added


def test_the_rest_of_a_refused_body_is_not_waited_for_for_ever(hasty: Rig) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    assert hasty.exchange(head).startswith(b"HTTP/1.1 401 ")


def test_after_the_rest_of_a_refused_body_the_connection_goes_on() -> None:
    with running(limits=Limits(idle_s=0)) as rig, rig.connect() as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(13) == b"HTTP/1.1 401 "
        connection.sendall(b" " * 100 + GET + b"\r\n")
        assert b"HTTP/1.1 200 " in read_all(connection)  # and idle it is closed


def test_an_answer_may_take_longer_than_every_deadline(hasty: Rig) -> None:
    hasty.engine.hold()
    with hasty.connect() as connection:
        connection.sendall(request_bytes(stream=True))
        hasty.engine.wait_until(lambda engine: engine.num_running == 1)
        assert hasty.exchange(GET) != b""  # every deadline has passed once for another
        hasty.engine.release()
        assert b"data: [DONE]" in read_all(connection)


def connect_narrowly(rig: Rig) -> socket.socket:
    """A connection that keeps little for a client that does not read."""
    connection = socket.socket()
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", httpx.URL(rig.url).port))
    return connection


def test_a_client_that_does_not_read_is_cut_off_and_its_sequences_are_freed() -> None:
    with running(limits=HASTY) as rig, connect_narrowly(rig) as connection:
        rig.engine.script = lambda sequence: say("a" * 500)
        rig.engine.hold(450)  # nobody has all that was asked for
        connection.sendall(request_bytes(stream=True, n=8, logprobs=True, top_logprobs=20))
        rig.engine.wait_until(lambda engine: len(engine.aborted) == 8)
        assert rig.engine.num_running == 0
        with pytest.raises(ConnectionResetError):  # nor does the kernel keep what it had taken
            while connection.recv(2**20):
                pass


# Many clients ----------------------------------------------------------------------------------


def test_connections_beyond_the_limit_are_told_and_those_beyond_that_cut_off() -> None:
    with running(limits=Limits(connections=2, refused_connections=1)) as rig, ExitStack() as open_:
        first, second = (open_.enter_context(rig.connect()) for _ in range(2))
        rig.engine.hold()
        for each in (first, second):
            each.sendall(request_bytes(stream=True))
        rig.engine.wait_until(lambda engine: engine.num_running == 2)
        with rig.connect() as third, rig.connect() as fourth:
            assert read_all(fourth) == b""
            answer = read_all(third)
        error = error_of(answer, 503)
        assert (error["code"], b"\r\nretry-after: 2\r\n" in answer) == (
            "server_is_overloaded",
            True,
        )
        rig.engine.release()
        for each in (first, second):
            assert each.recv(13) == b"HTTP/1.1 200 "


def read_health(connection: socket.socket) -> bytes:
    """The body of one answer."""
    received = b""
    while not received.endswith(b"}") and (piece := connection.recv(2**16)):
        received += piece
    return received.partition(b"\r\n\r\n")[2]


def test_a_silent_connection_makes_room_for_a_new_one_the_longest_first() -> None:
    with running(limits=Limits(connections=3)) as rig, ExitStack() as open_:
        busy, silent, speaking = (open_.enter_context(rig.connect()) for _ in range(3))
        rig.engine.hold()
        busy.sendall(request_bytes(stream=True))
        rig.engine.wait_until(lambda engine: engine.num_running == 1)
        speaking.sendall(GET + b"\r\n")
        assert read_health(speaking) == b'{"status":"ready"}'
        assert rig.client.get("/health/live").status_code == 200
        assert read_all(silent) == b""
        speaking.sendall(GET + b"\r\n")
        assert read_health(speaking) == b'{"status":"ready"}'
        rig.engine.release()
        assert busy.recv(13) == b"HTTP/1.1 200 "


def test_a_burst_of_silent_connections_keeps_nobody_out() -> None:
    with running(limits=Limits(connections=4, refused_connections=2)) as rig, ExitStack() as open_:
        for _ in range(60):
            open_.enter_context(rig.connect())
        for _ in range(5):
            assert httpx.get(f"{rig.url}/health", trust_env=False).status_code == 200


NUMBERS = {  # 300
    "head": 90,
    "body": 90,
    "reader": 30,
    "idle": 90,
}


def slow(rig: Rig, kind: str) -> socket.socket:
    """A client that keeps the server waiting in one of four ways."""
    connection = connect_narrowly(rig)
    text = json.dumps({"prompt": "a" * 600_000}).encode()  # its ids fill every buffer on the way
    tokenize = POST.replace(b"chat/completions", b"tokenize")
    openings = {
        "head": GET,
        "body": POST + b"content-length: 9999\r\n\r\n{",
        "reader": tokenize + b"content-length: %d\r\n\r\n%s" % (len(text), text),
        "idle": GET + b"\r\n",
    }
    connection.sendall(openings[kind])
    return connection


def test_300_slow_clients_of_four_kinds_keep_nothing_from_a_good_one() -> None:
    limits = Limits(head_s=0.5, body_window_s=0.5, write_s=0.5, idle_s=1)
    with running(limits=limits) as rig, ExitStack() as clients:
        for kind, number in NUMBERS.items():
            for _ in range(number):
                clients.enter_context(slow(rig, kind))
        for _ in range(20):
            assert rig.chat().json()["choices"][0]["message"]["content"] == ANSWER
            assert rig.client.get("/health").status_code == 200
        wait_until_closed(rig)
        assert rig.server.budget.used == 0
        assert rig.chat().status_code == 200


def wait_until_closed(rig: Rig) -> None:
    """Until the server has no connection left."""
    deadline = time.monotonic() + PATIENCE
    while rig.server.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not rig.server.server_state.connections


# What is told of it ----------------------------------------------------------------------------


def test_every_connection_that_the_server_ends_is_counted_and_logged_by_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = Limits(
        head_s=0.1, body_window_s=0.1, unread_s=0.1, head_bytes=200, connections=2, linger_s=0.1
    )
    refused = POST.replace(KEY.encode(), b"wrong") + b"content-length: 9\r\n\r\n{"
    ways = {
        "no_request": b"",
        "request_timeout": GET,
        "invalid_http": b"canary\r\n\r\n",
        "head_too_large": GET + b"canary" * 100,
        "unread_body": refused,
    }
    with caplog.at_level("INFO", "litevl.wire"), running(limits=limits) as rig:
        for request in ways.values():
            rig.exchange(request)
        wait_until_closed(rig)
        text = httpx.get(f"{rig.url}/metrics", trust_env=False).text
    for why in ways:
        assert re.search(rf'litevl:connections_ended_total\{{.*reason="{why}"\}} 1\.0', text), why
    told = [each.getMessage() for each in caplog.records if each.name == "litevl.wire"]
    assert [each.split()[2] for each in told[: len(ways)]] == list(ways)
    assert "canary" not in text + caplog.text


def request_ids(text: str) -> list[str]:
    return re.findall(r"(?:\bid=|x-request-id: )([\w-]+)", text)


@pytest.mark.parametrize("given", [b"", b"x-request-id: mine-1\r\n"])
def test_a_refused_request_has_one_id_for_its_client_and_the_log(
    caplog: pytest.LogCaptureFixture, given: bytes
) -> None:
    with caplog.at_level("INFO", "litevl"), running(limits=HASTY) as rig:
        late = rig.exchange(POST + given + b"content-length: 9\r\n\r\n{")
        unread = rig.exchange(b"canary\r\n\r\n")
    (sent,) = request_ids(late.decode())
    assert sent == "mine-1" if given else sent.startswith("req-")
    assert request_ids(" ".join(caplog.messages)) == [sent, sent, *request_ids(unread.decode())]


# Clients that ask ahead ------------------------------------------------------------------------


def test_a_client_that_asks_ahead_and_leaves_is_noticed_at_once() -> None:
    with running() as rig:
        rig.engine.hold(1)
        with rig.connect() as connection:
            connection.sendall(request_bytes(stream=True))
            assert connection.recv(13) == b"HTTP/1.1 200 "
            connection.sendall(GET + b"\r\n")
        rig.engine.wait_until(lambda engine: len(engine.aborted) == 1)


def test_what_is_asked_ahead_is_not_kept_without_end() -> None:
    with running(limits=Limits(ahead=1000)) as rig, rig.connect() as connection:
        rig.engine.hold(1)
        connection.sendall(request_bytes(stream=True))
        assert connection.recv(13) == b"HTTP/1.1 200 "
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):  # the server has stopped reading
            connection.sendall((GET + b"\r\n") * 10**6)
        (one,) = rig.server.server_state.connections
        assert isinstance(one, GuardedProtocol) and len(one.conn.trailing_data[0]) < 2**20
        rig.engine.release()
