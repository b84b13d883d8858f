"""What hostile names and servers can do to a download: real sockets, all on loopback."""

import asyncio
import contextlib
import gc
import socket
import struct

import psutil
import pytest

from litevl.errors import MediaError
from litevl.media import fetch
from litevl.media.fetch import Fetcher
from media_samples import png, reference
from test_fetch import LOOPBACK, PUBLIC, Serve, code_of, fetch_from, replying, resolver, sink

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n\r\n"
PROXIES = ("HTTP_PROXY", "https_proxy", "ALL_PROXY")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SECONDS", {"image": 0.4, "video": 600.0})


# Servers ---------------------------------------------------------------------------------------


def dripping(start: bytes, drop: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.01)

    return serve


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A picture that breaks off."""
    writer.write(OK + png()[:60])
    await writer.drain()
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "serve",
    [
        dripping(b"", b"H"),
        dripping(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
        dripping(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping(OK + png(), b"\0"),
        dripping(
            OK.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n"), b"1\r\n\x89\r\n"
        ),
        dripping(b"HTTP/1.1 302 Found\r\n", b"location: /\r\n"),
        reset,
        replying("200 OK\r\ncontent-length: -5", png()),
        replying("200 OK\r\ncontent-length: 5\r\ncontent-length: 6", png()),
        replying("200 OK\r\ntransfer-encoding: chunked", b"zz\r\n" + png()),
        replying("200 OK\r\ntransfer-encoding: gzip, chunked", png()),
        replying("200 OK\r\ncontent-encoding: identity, gzip", png()),
        replying("401 Unauthorized\r\nwww-authenticate: Basic\r\ncontent-length: 0"),
        replying("101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade"),
        replying("407 Proxy\r\ncontent-length: 0"),
    ],
)
async def test_a_hostile_server_is_a_failed_download_that_tells_nothing_of_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MediaError) as caught:
        await fetch_from(serve)
    assert caught.value.code == "failed_to_download_image"
    assert caught.value.message.endswith("redirects")
    for leak in ("canary", "127.", "401", "302", "407"):
        assert leak not in caught.value.message


async def test_a_server_that_never_shakes_hands_is_given_up_and_leaves_no_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch, "CONNECT_S", 0.2)
    async with sink(replying("200 OK")) as port:  # a head never comes to it
        url = f"https://127.0.0.1:{port}/"
        fetching = Fetcher([LOOPBACK]).fetch(reference(url))
        assert await code_of(fetching) == "failed_to_download_image"


async def test_a_download_that_is_cancelled_while_hands_are_shaken_closes_its_socket() -> None:
    greeted = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)  # of the client's hello
        greeted.set()
        await reader.read(-1)
        writer.close()

    gc.disable()  # it would close what nobody else does
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        ref = reference(f"https://127.0.0.1:{port}/")
        fetching = asyncio.create_task(Fetcher([LOOPBACK]).fetch(ref))
        await greeted.wait()
        fetching.cancel()
        await asyncio.wait([fetching])
        await asyncio.sleep(0)  # a transport closes in the loop's next turn
        open_ones = psutil.Process().net_connections("tcp")
        gc.enable()
    assert fetching.cancelled()
    assert not [each for each in open_ones if each.raddr and each.raddr.port == port]


async def test_a_body_that_is_longer_than_it_says_ends_where_it_said() -> None:
    longer = replying(f"200 OK\r\ncontent-length: {len(png())}", png(), b"\0" * 100)
    assert await fetch_from(longer) == png()


# Names -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
async def test_a_name_server_that_hangs_is_given_up_in_time() -> None:
    async def hang(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    fetching = Fetcher(resolver=hang).fetch(reference("http://pictures.example/"))
    assert await code_of(fetching) == "failed_to_download_image"


async def test_one_private_answer_among_a_thousand_is_enough_to_refuse() -> None:
    answers = [PUBLIC] * 999 + ["10.0.0.1"]
    fetching = Fetcher(resolver=resolver(many_example=answers)).fetch(
        reference("http://many.example/")
    )
    assert await code_of(fetching) == "invalid_image_url"


async def test_the_socket_leads_to_the_address_that_was_checked_and_to_no_other() -> None:
    """The name's next answer would be another address, where somebody listens on the same port."""
    seen: list[str] = []

    def noting(answer: Serve) -> Serve:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(writer.get_extra_info("sockname")[0])
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
            writer.close()

        return handle

    answers = iter((["127.0.0.2"], ["127.0.0.3"]))

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    async with contextlib.AsyncExitStack() as servers:
        first = await servers.enter_async_context(
            await asyncio.start_server(noting(replying("200 OK", png())), "127.0.0.2", 0)
        )
        port = first.sockets[0].getsockname()[1]
        await servers.enter_async_context(
            await asyncio.start_server(noting(replying("200 OK", png())), "127.0.0.3", port)
        )
        fetcher = Fetcher([LOOPBACK], resolver=rebinding)
        assert await fetcher.fetch(reference(f"http://rebind.example:{port}/")) == png()
    assert seen == ["127.0.0.2"]


# Proxies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROXIES)
async def test_no_proxy_is_used_and_a_failed_download_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("somebody asked the proxy")

    async with sink(fail) as port:
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        assert await fetch_from(replying("200 OK", png())) == png()
        with pytest.raises(MediaError, match="proxy is not used"):
            await fetch_from(replying("500 Oops\r\ncontent-length: 0"))
