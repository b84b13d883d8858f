"""Bodies in chunks, over raw sockets: what stands around them is of one plain form."""

import json

import pytest

from fakes import Rig, body
from test_wire import GET, POST, error_of, small

__all__ = ["small"]


def chunked(size: int) -> bytes:
    text = json.dumps(body(user="a" * 300)).encode()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def test_chunks_of_a_sane_size_are_read(small: Rig) -> None:
    for size in (10**3, 100, 64):
        assert small.exchange(chunked(size)).startswith(b"HTTP/1.1 200 ")


def test_a_body_in_tiny_chunks_is_refused(small: Rig) -> None:
    num_added = len(small.engine.added)
    assert error_of(small.exchange(chunked(2)), 400)["code"] == "invalid_http"
    assert len(small.engine.added) == num_added


@pytest.mark.parametrize(
    "rest",
    [
        b"0\r\n\n",
        b"0\r\nx: y\n\n",
        b"0\r\nx: y\r\n\n",
        b"0\r\nx: y\r\n z\r\n\r\n",
        b"0;a\rb\r\n\r\n",
        b"0;a\0b\r\n\r\n",
        b"fffffffff\r\n",
    ],
)
def test_what_stands_around_chunks_is_of_one_plain_form(small: Rig, rest: bytes) -> None:
    request = chunked(1000).removesuffix(b"0\r\n\r\n")
    fine = small.exchange(request + b'0;a="b"\r\nx: y\r\n\r\n')
    assert fine.startswith(b"HTTP/1.1 200 ")
    assert error_of(small.exchange(request + rest + GET), 400)["code"] == "invalid_http"


def test_a_head_that_ends_in_a_bare_line_feed_is_refused(small: Rig) -> None:
    assert error_of(small.exchange(GET + b"\n"), 400)["code"] == "invalid_http"


def test_a_chunked_body_has_no_more_trailers_than_a_head_has_headers(small: Rig) -> None:
    request, trailer = chunked(1000)[:-2], b"x: y\r\n"
    assert small.exchange(request + trailer * 10 + b"\r\n").startswith(b"HTTP/1.1 200 ")
    for more in (trailer * 11, b"x: " + b"y" * 2000 + b"\r\n"):
        answer = small.exchange(request + more + b"\r\n")
        assert error_of(answer, 431)["code"] == "head_too_large"
