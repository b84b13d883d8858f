"""Which addresses are dialled, and what is taken from them. No name is ever looked up outside."""

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest

from litevl import __version__
from litevl.errors import MediaError
from litevl.media import fetch, sources
from litevl.media.fetch import Fetcher, Resolver
from litevl.sequence import MediaKind
from media_samples import PARAM, clip, png, reference

pytestmark = pytest.mark.anyio

PUBLIC, OTHER_PUBLIC = "93.184.216.34", "2606:2800:220:1::1"
LOOPBACK = ip_network("127.0.0.0/8")


def resolver(**names: list[str]) -> Resolver:
    """Names as given (`_` for `.`), literals as the system reads them; the rest is public."""

    async def resolve(host: str, port: int) -> list[str]:
        known = names.get(host.replace(".", "_"))
        if known is not None:
            return known
        try:
            found = socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            return [PUBLIC]
        return [str(entry[4][0]) for entry in found]

    return resolve


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """Requests in place of dials, answered with a picture or with the redirect in their query."""
    requests: list[httpx.Request] = []

    async def answer(self: object, request: httpx.Request) -> httpx.Response:
        requests.append(request)
        to = request.url.params.get("to")
        if to is not None:
            status = int(request.url.params.get("status", "302"))
            return httpx.Response(status, headers={"location": to})
        return httpx.Response(200, stream=httpx.ByteStream(png()))

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answer)
    return requests


async def code_of(fetching: Awaitable[bytes]) -> str:
    with pytest.raises(MediaError) as caught:
        await fetching
    assert caught.value.param == PARAM
    assert caught.value.message.startswith(f"{PARAM}: ")
    return caught.value.code


# Addresses -------------------------------------------------------------------------------------

PRIVATE = [
    # loopback, private, link-local, shared, unspecified, broadcast, multicast, reserved
    "http://127.0.0.1/", "http://127.8.9.1/", "http://10.0.0.1/", "http://172.16.0.1/",
    "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/",
    "http://100.100.100.200/", "http://0.0.0.0/", "http://255.255.255.255/", "http://224.0.0.1/",
    "http://240.0.0.1/", "http://192.0.0.8/", "http://192.0.2.1/", "http://198.18.0.1/",
    "http://203.0.113.1/", "http://192.88.99.1/", "http://168.63.129.16/",
    # the same in other spellings
    "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/", "http://0/",
    "http://0x7f.1/", "http://①②⑦.0.0.1/", "http://１２７.0.0.1/", "http://127.0.0.1./",
    "http://127。0。0。1/",
    # IPv6, plain and carrying IPv4
    "http://[20A]/", "http://[127.0.0.1]/",
    "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:a9fe:a9fe]/",
    "http://[::127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::1]/", "http://[2002:7f00:1::]/", "http://[2002:5db8:d822::]/",
    "http://[2001::1]/", "http://[2001:db8::1]/", "http://[3fff::1]/", "http://[fe80::1]/",
    "http://[fec0::1]/", "http://[fc00::1]/", "http://[fd00::1]/", "http://[ff02::1]/",
    "http://[100::1]/", "http://[5f00::1]/",
]  # fmt: skip
MALFORMED = [
    # user names, backslashes, spaces, control characters
    "http://user@pictures.example/", "http://user:pass@pictures.example/",
    "http://127.0.0.1:80\\@pictures.example/", "http://pictures.example\\@127.0.0.1/",
    "http://pictures.example\\.evil/", "http://pictures.example#@127.0.0.1/".replace("#", "@"),
    "http://pictures.example/a b", " http://pictures.example/", "http://pictures.example/\n",
    "http://pic\ttures.example/", "http://pictures.example/\x00", "http://pictures.example/\x7f",
    "http://pictures.example/\u202e", "http://pictures.example/\u00a0",
    # no host, or none that is a name
    "http:///a.png", "http://", "http:a.png", "http:/pictures.example/", "//pictures.example/",
    "http://.pictures.example/", "http://pictures..example/", "http://pictures%2eexample/",
    "http://[::1/", "http://::1/", "http://[fe80::1%25lo]/", "http://pic,tures.example/",
    "http://" + "a" * 300 + ".example/", "http://pictures.example/" + "a" * 9000,
    # ports
    "http://pictures.example:22/", "http://pictures.example:6379/", "http://pictures.example:8000/",
    "http://pictures.example:0/", "http://pictures.example:65536/", "http://pictures.example:/",
    "http://pictures.example:80:80/", "http://pictures.example:-80/", "http://pictures.example:８０/",
    # schemes
    "file:///etc/passwd", "ftp://pictures.example/", "gopher://pictures.example/", "/etc/passwd",
    "jar:http://pictures.example/", "httpx://pictures.example/", "a.png", "", "concat:/etc/passwd",
    "rtsp://pictures.example/", "view-source:http://pictures.example/", "iVBORw0KGgo",
]  # fmt: skip


@pytest.mark.parametrize("url", PRIVATE + MALFORMED)
async def test_hostile_addresses_are_refused_and_nothing_is_dialled(
    url: str, dialled: list[httpx.Request]
) -> None:
    texts = set()
    for declared in ("image", "video"):
        kind: MediaKind = "image" if declared == "image" else "video"
        with pytest.raises(MediaError) as caught:
            await Fetcher(resolver=resolver()).fetch(reference(url, kind))
        assert caught.value.code == f"invalid_{declared}_url"
        texts.add(caught.value.message)
    assert dialled == []
    assert len(texts) == 1
    assert len(url) < 5 or url not in texts.pop()


async def test_every_refusal_has_the_same_text(dialled: list[httpx.Request]) -> None:
    texts = set()
    for url in (PRIVATE[0], PRIVATE[-1], MALFORMED[0], MALFORMED[-1]):
        with pytest.raises(MediaError) as caught:
            await Fetcher(resolver=resolver()).fetch(reference(url))
        texts.add(caught.value.message)
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("http://pictures.example/a.png?x=1&y=%20#part", PUBLIC, "/a.png?x=1&y=%20"),
        ("HTTPS://Pictures.Example", PUBLIC, "/"),
        ("https://pictures.example:443?q", PUBLIC, "/?q"),
        ("http://pictures.example:443/a", PUBLIC, "/a"),
        ("http://bücher.example/图.png", PUBLIC, "/%E5%9B%BE.png"),
        (f"http://{PUBLIC}/", PUBLIC, "/"),
        (f"http://[{OTHER_PUBLIC}]/", OTHER_PUBLIC, "/"),
        (f"http://[::ffff:{PUBLIC}]/", PUBLIC, "/"),
        ("http://[64:ff9b::5db8:d822]/", "64:ff9b::5db8:d822", "/"),
    ],
)
async def test_public_addresses_are_dialled_as_they_were_checked(
    url: str, host: str, path: str, dialled: list[httpx.Request]
) -> None:
    assert await Fetcher(resolver=resolver()).fetch(reference(url)) == png()
    assert [(each.url.host, each.url.raw_path.decode()) for each in dialled] == [(host, path)]


async def test_the_name_travels_in_the_request_and_nothing_private_does(
    dialled: list[httpx.Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    await Fetcher(resolver=resolver()).fetch(reference("http://pictures.example:443/a"))
    (request,) = dialled
    assert request.extensions["sni_hostname"] == "pictures.example"
    assert dict(request.headers) == {
        "host": "pictures.example:443",
        "user-agent": f"litevl/{__version__}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
    }


async def test_every_answer_of_the_resolver_must_be_public(dialled: list[httpx.Request]) -> None:
    for answers in ([PUBLIC, "10.0.0.1"], ["::1", PUBLIC], ["fe80::1%eth0"], ["nonsense"]):
        fetcher = Fetcher(resolver=resolver(mixed_example=answers))
        assert (
            await code_of(fetcher.fetch(reference("http://mixed.example/"))) == "invalid_image_url"
        )
    assert dialled == []


async def test_a_name_that_does_not_exist_is_refused_like_one_that_leads_inwards() -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror

    told = set()
    for resolve in (
        unknown,
        resolver(pictures_example=[]),
        resolver(pictures_example=["10.0.0.1"]),
    ):
        with pytest.raises(MediaError) as caught:
            await Fetcher(resolver=resolve).fetch(reference("http://pictures.example/"))
        told.add((caught.value.code, caught.value.message))
    assert [code for code, _ in told] == ["invalid_image_url"]


async def test_a_name_is_resolved_once_and_that_address_is_dialled(
    dialled: list[httpx.Request],
) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    asked = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    fetcher = Fetcher(resolver=rebinding)
    assert await fetcher.fetch(reference("http://rebind.example/")) == png()
    assert asked == ["rebind.example"]
    assert [each.url.host for each in dialled] == [PUBLIC]
    # the second answer is checked like the first
    assert await code_of(fetcher.fetch(reference("http://rebind.example/"))) == "invalid_image_url"
    assert len(dialled) == 1


async def test_opened_networks_allow_their_addresses_on_any_port_and_no_others(
    dialled: list[httpx.Request],
) -> None:
    fetcher = Fetcher([ip_network("10.1.0.0/16"), ip_network("fd00::/8")], resolver=resolver())
    for url in ("http://10.1.2.3:9000/", "http://[fd00::1]:81/", "http://[::ffff:10.1.2.3]/"):
        assert await fetcher.fetch(reference(url)) == png()
    dialled.clear()
    for url in ("http://10.2.0.1/", "http://127.0.0.1/", "http://pictures.example:9000/"):
        assert await code_of(fetcher.fetch(reference(url))) == "invalid_image_url"
    assert dialled == []


async def test_where_domains_are_named_no_other_host_is_asked_for_at_any_hop(
    dialled: list[httpx.Request],
) -> None:
    fetcher = Fetcher(domains=["Pictures.Example"], resolver=resolver())
    assert await fetcher.fetch(reference("http://PICTURES.example./")) == png()
    dialled.clear()
    for url in ("http://other.example/", "http://sub.pictures.example/", f"http://{PUBLIC}/"):
        assert await code_of(fetcher.fetch(reference(url))) == "invalid_image_url"
    assert dialled == []
    away = httpx.URL("http://pictures.example/", params={"to": "http://other.example/"})
    assert await code_of(fetcher.fetch(reference(str(away)))) == "invalid_image_url"
    assert len(dialled) == 1


# Redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_a_private_address_is_refused(
    status: int, dialled: list[httpx.Request]
) -> None:
    for to in (
        "http://127.0.0.1/", "//127.0.0.1/", "https://[::1]/", "http://inner.example/",
        "file:///etc/passwd", "http:\\\\127.0.0.1", "http://a@pictures.example/", "http://[/",
    ):  # fmt: skip
        dialled.clear()
        url = httpx.URL("http://pictures.example/", params={"to": to, "status": status})
        fetcher = Fetcher(resolver=resolver(inner_example=["10.0.0.1"]))
        assert await code_of(fetcher.fetch(reference(str(url)))) == "invalid_image_url"
        assert [each.url.host for each in dialled] == [PUBLIC]


async def test_a_redirect_is_resolved_and_named_anew(dialled: list[httpx.Request]) -> None:
    fetcher = Fetcher(resolver=resolver(other_example=[OTHER_PUBLIC]))
    url = "http://pictures.example/a/b?to=https://other.example/c"
    assert await fetcher.fetch(reference(url)) == png()
    assert [each.url.host for each in dialled] == [PUBLIC, OTHER_PUBLIC]
    assert [each.headers["host"] for each in dialled] == ["pictures.example", "other.example"]
    assert [each.url.scheme for each in dialled] == ["http", "https"]


async def test_redirects_may_be_relative_and_end_after_three(dialled: list[httpx.Request]) -> None:
    url = "/last"
    for _ in range(3):
        url = str(httpx.URL("/next", params={"to": url}))
    fetcher = Fetcher(resolver=resolver())
    assert await fetcher.fetch(reference("http://pictures.example" + url)) == png()
    assert len(dialled) == 4
    loop = httpx.URL("http://pictures.example/next", params={"to": url})
    assert await code_of(fetcher.fetch(reference(str(loop)))) == "failed_to_download_image"
    assert len(dialled) == 8


# Real servers on loopback ----------------------------------------------------------------------

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def sink(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A raw server that reads a request's head, then does as told."""

    serving: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has hung up
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*filter(None, serving))  # the client has hung up: they end


def replying(head: str, *body: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {head}\r\n\r\n".encode())
        for each in body:
            writer.write(each)
            await writer.drain()

    return serve


async def fetch_from(serve: Serve, kind: MediaKind = "image") -> bytes:
    async with sink(serve) as port:
        url = f"http://127.0.0.1:{port}/a?token=canary"
        return await Fetcher([LOOPBACK]).fetch(reference(url, kind))


async def test_a_picture_comes_with_and_without_its_length() -> None:
    sized = replying(f"200 OK\r\ncontent-length: {len(png())}", png())
    chunked = replying(
        "200 OK\r\ntransfer-encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(png()), png())
    )
    for serve in (sized, chunked, replying("200 OK\r\nconnection: close", png())):
        assert await fetch_from(serve) == png()


@pytest.mark.parametrize(
    "serve",
    [
        replying("404 Not Found\r\ncontent-length: 6", b"secret"),
        replying("500 Oops\r\ncontent-length: 0"),
        replying("204 No Content"),
        replying("206 Partial\r\ncontent-length: 6", b"secret"),
        replying("304 Not Modified"),
        replying("302 Found\r\ncontent-length: 0"),
        replying("200 OK\r\ncontent-encoding: gzip", gzip.compress(png())),
        replying("200 OK\r\ncontent-encoding: br", png()),
        replying("200 OK\r\ncontent-length: 9999", png()),
        replying("200 OK\r\ncontent-length: banana", png()),
        replying("not http at all"),
        replying("200 OK\r\nx: " + "y" * 200_000, png()),
    ],
)
async def test_a_server_that_gives_no_file_is_a_failed_download(serve: Serve) -> None:
    with pytest.raises(MediaError) as caught:
        await fetch_from(serve, "video")
    assert caught.value.code == "failed_to_download_video"
    for leak in ("secret", "canary", "127.0.0.1", "404"):
        assert leak not in caught.value.message


async def test_nobody_listening_is_a_failed_download() -> None:
    async with sink(replying("200 OK")) as port:
        pass
    fetching = Fetcher([LOOPBACK]).fetch(reference(f"http://127.0.0.1:{port}/"))
    assert await code_of(fetching) == "failed_to_download_image"


async def test_an_empty_answer_is_an_empty_file() -> None:
    assert await code_of(fetch_from(replying("200 OK\r\ncontent-length: 0"))) == "empty_image_file"


@pytest.mark.parametrize("head", ["200 OK", "200 OK\r\ncontent-length: 900000000"])
@pytest.mark.parametrize("kind", ["image", "video"])
async def test_the_limit_is_that_of_what_the_bytes_are(
    kind: MediaKind, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would send without end."""
    data = png() if kind == "image" else clip(frames=2)
    monkeypatch.setattr(sources, "MAX_BYTES", {"image": 2**16, "video": 2**17})
    code = await code_of(fetch_from(replying(head, data, *([bytes(2**16)] * 100))))
    assert code == ("video_too_large" if "length" in head else f"{kind}_too_large")


async def test_other_bytes_are_refused_before_the_download_ends() -> None:
    endless = replying("200 OK", b"<html>" + bytes(100), *([bytes(2**16)] * 10_000))
    assert await code_of(fetch_from(endless)) == "unsupported_media_type"


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n\r\n" + png()])
async def test_a_server_that_hangs_is_given_up_in_time(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SECONDS", {"image": 0.3, "video": 600.0})

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await reader.read()  # until the client hangs up, which it must

    assert await code_of(fetch_from(hang)) == "failed_to_download_image"


async def test_the_log_does_not_tell_what_was_fetched(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await fetch_from(replying("200 OK", png()))
    assert "canary" not in caplog.text


# TLS -------------------------------------------------------------------------------------------

# For `pictures.test`, good until 2126, trusted by nobody but this test.
CERTIFICATE = Path(__file__).parent / "tls" / "pictures.pem"


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(CERTIFICATE)
    return server, ssl.create_default_context(cafile=CERTIFICATE)


async def test_a_certificate_is_checked_against_the_name_though_an_address_is_dialled() -> None:
    # In debug mode asyncio reports the handshakes that the client breaks off, as it should.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    server, client = tls_contexts()
    names: list[str | None] = []
    server.sni_callback = lambda sock, name, context: names.append(name)
    answers = resolver(pictures_test=["127.0.0.1"], other_test=["127.0.0.1"])
    async with sink(replying("200 OK", png()), server) as port:
        trusting = Fetcher([LOOPBACK], resolver=answers, ssl_context=client)
        assert await trusting.fetch(reference(f"https://pictures.test:{port}/")) == png()
        for fetcher, host in (
            (trusting, "other.test"),
            (trusting, "127.0.0.1"),
            (Fetcher([LOOPBACK], resolver=answers), "pictures.test"),
        ):
            fetching = fetcher.fetch(reference(f"https://{host}:{port}/"))
            assert await code_of(fetching) == "failed_to_download_image"
    assert names[:2] == ["pictures.test", "other.test"]
