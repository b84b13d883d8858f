"""TLS on the guarded wire: who does not shake hands is bounded like everybody else."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fakes import PATIENCE, Rig, request_bytes, running
from litevl.api.wire import Limits
from test_wire import GET, read_all, read_health, wait_until_closed

FOLDER = Path(__file__).parent / "tls"  # self-signed, for 127.0.0.1
FILES: dict[str, Any] = {
    "ssl_certfile": str(FOLDER / "cert.pem"),
    "ssl_keyfile": str(FOLDER / "key.pem"),
}
CLIENT = ssl.create_default_context(cafile=FILES["ssl_certfile"])
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # how a handshake begins


@pytest.fixture(scope="module")
def hasty() -> Iterator[Rig]:
    with running(limits=Limits(head_s=0.3, linger_s=0.3, idle_s=0), **FILES) as rig:
        yield rig


def secured(connection: socket.socket) -> ssl.SSLSocket:
    return CLIENT.wrap_socket(connection, server_hostname="127.0.0.1")


def ask(connection: ssl.SSLSocket, request: bytes) -> bytes:
    connection.sendall(request)
    return read_all(connection)


def test_a_request_over_tls_is_answered_and_a_stream_ends_well(hasty: Rig) -> None:
    for stream in (False, True):
        with secured(hasty.connect()) as connection:
            answer = ask(connection, request_bytes(stream=stream))
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n" if stream else b"}")


def test_a_request_in_one_packet_with_the_end_of_the_handshake_is_answered(hasty: Rig) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = CLIENT.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with hasty.connect() as connection:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(2**16))
        client.write(GET + b"\r\n")
        connection.sendall(outgoing.read())
        while True:
            try:
                assert client.read(13) == b"HTTP/1.1 200 "
                break
            except ssl.SSLWantReadError:
                incoming.write(connection.recv(2**16))


@pytest.mark.parametrize("sent", [b"", HELLO], ids=["nothing", "half a hello"])
def test_a_handshake_that_does_not_end_is_closed_in_the_time_of_a_head(
    hasty: Rig, sent: bytes
) -> None:
    assert hasty.exchange(sent) == b""
    wait_until_closed(hasty)


def test_what_is_no_tls_is_closed_and_leaves_nothing_behind(hasty: Rig) -> None:
    with hasty.connect() as connection:
        connection.sendall(GET + b"\r\n")
        assert not read_all(connection).startswith(b"HTTP")  # a TLS alert, perhaps
    wait_until_closed(hasty)


def test_a_client_that_leaves_in_the_handshake_leaves_nothing_behind(hasty: Rig) -> None:
    for sent in (b"", HELLO):
        with hasty.connect() as connection:
            connection.sendall(sent)
    wait_until_closed(hasty)


def test_a_slow_head_after_the_handshake_is_408(hasty: Rig) -> None:
    with secured(hasty.connect()) as connection:
        assert ask(connection, GET).startswith(b"HTTP/1.1 408 ")


def test_who_never_shakes_hands_makes_room_for_who_does() -> None:
    limits = Limits(connections=3, head_s=PATIENCE)
    with running(limits=limits, **FILES) as rig, ExitStack() as open_:
        silent = [open_.enter_context(rig.connect()) for _ in range(9)]
        speaking = open_.enter_context(secured(rig.connect()))
        speaking.sendall(GET + b"\r\n")
        assert read_health(speaking) == b'{"status":"ready"}'
        assert [read_all(each) for each in silent[:7]] == [b""] * 7
        assert len(rig.server.server_state.connections) <= 3
