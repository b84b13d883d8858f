"""URL -> bytes: one parser, one DNS answer, one dialled address, again for every redirect.

`loader.py` calls `Fetcher.fetch`. The address that was checked is the address that is dialled, so
neither a second parser nor a second DNS answer can lead elsewhere. Knows nothing of decoding.
"""

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin
from urllib.request import getproxies

import httpx

from litevl import __version__
from litevl.config import IPNetwork
from litevl.errors import MediaError, UnavailableError
from litevl.machine import is_out_of_files
from litevl.media.budgets import ByteBudget
from litevl.media.sources import HEAD, NOUN, check_size, empty_error, sniff
from litevl.sequence import MediaKind, MediaRef

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]

SECONDS: Mapping[MediaKind, float] = {
    "image": 10.0,
    "video": 30.0,
}  # for everything, redirects included
CONNECT_S = 5.0  # for one hop, the TLS handshake included
MAX_REDIRECTS = 3
MAX_URL = 8192
MAX_LOOKUPS = 16  # at the same time; a name server that does not answer holds each for seconds

# `ipaddress` takes these for global: protocol assignments, 6to4 relays, a cloud's host.
_REFUSED_V4 = tuple(
    map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"))
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
# Teredo and other assignments, documentation, 6to4: they carry private IPv4 addresses or nothing.
_REFUSED_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "2620:4f:8000::/48"),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)\]|([^:\[\]@%]+))(?::([0-9]{1,5}))?")
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class RefusedError(Exception):
    """The address must not be dialled; the client hears one text for every reason."""


class _FailedError(Exception):
    """The address may be dialled, but gave nothing that can be used."""


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, taken apart once: host as an ASCII name or bare IP literal, path with its query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_address(url: str) -> Address:
    """The only URL parser. Refuses all but plain http(s): user names, backslashes, spaces."""
    match = _URL.fullmatch(url.partition("#")[0]) if len(url) <= MAX_URL else None
    if match is None or "\\" in url or any(c.isspace() or not c.isprintable() for c in url):
        raise RefusedError
    scheme, authority, path = match[1].lower(), match[2], match[3]
    parts = _HOST.fullmatch(authority)
    if parts is None:
        raise RefusedError
    port = int(parts[3]) if parts[3] else _default_port(scheme)
    if not 1 <= port <= 65535:
        raise RefusedError
    path = quote(path, safe="/?%:;=&+,~!$'()*@[]|{}^`\"<>-._")
    return Address(
        scheme, parts[1] or _ascii_name(parts[2]), port, path if path[:1] == "/" else "/" + path
    )


def _ascii_name(host: str) -> str:
    try:
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        raise RefusedError from None
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise RefusedError
    return name


def _join(address: Address, location: str) -> str:
    """Where a redirect leads; what comes out is parsed and checked like any other URL."""
    try:
        return urljoin(str(address), location)
    except ValueError:
        raise RefusedError from None


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def is_public(ip: IPAddress) -> bool:
    """Whether an address belongs to the open internet. Stricter than `is_global`."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and not any(ip in each for each in _REFUSED_V4)
    if ip.scope_id is not None:
        return False
    if ip in _NAT64:
        return is_public(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return ip in _GLOBAL_V6 and ip.is_global and not any(ip in each for each in _REFUSED_V6)


def _parse_ip(text: str) -> IPAddress:
    """An answer of the resolver; a mapped IPv4 address is checked and dialled as what it is."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise RefusedError from None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def _look_up(host: str, port: int) -> list[str]:
    """The system's resolver: IP addresses of a name or literal, best first. Blocks."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Fetcher:
    """Downloads from public addresses and from the networks that the operator opened."""

    def __init__(
        self,
        networks: Iterable[IPNetwork] = (),
        *,
        domains: Iterable[str] = (),
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Without `domains`, any public host may be fetched from; with them, these alone."""
        self._networks = tuple(networks)
        self._domains = frozenset(domain.lower() for domain in domains)
        self._resolve = resolver or self._look_up
        # Not the loop's own threads: lookups that hang would stop all else that needs one.
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, "litevl-dns")
        self._ssl = ssl_context or httpx.create_ssl_context(trust_env=False)

    def close(self) -> None:
        """Start no other lookup, and wait for none."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, ref: MediaRef, budget: ByteBudget | None = None) -> bytes:
        """The bytes behind an http(s) URL, within time, size and what the request may bring.

        `MediaError` invalid_*_url when the address is refused, failed_to_download_* when it gave
        nothing usable, and those of `sniff`, `check_size` and `budget` as soon as bytes tell.
        `UnavailableError` where this process may open no more sockets.
        """
        try:
            async with asyncio.timeout(SECONDS[ref.declared]):
                return await self._follow(ref, budget or ByteBudget())
        except RefusedError:
            raise _refused(ref) from None
        except (_FailedError, httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            if is_out_of_files(error):
                raise UnavailableError("Too many files are open; try again later.") from None
            raise _failed(ref) from None

    async def _look_up(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _look_up, host, port)

    async def _follow(self, ref: MediaRef, budget: ByteBudget) -> bytes:
        url = ref.url
        for _ in range(1 + MAX_REDIRECTS):
            address = parse_address(url)
            answer = await self._get(address, await self._choose_ip(address), ref, budget)
            if isinstance(answer, bytes):
                return answer
            url = _join(address, answer)
        raise _FailedError

    async def _choose_ip(self, address: Address) -> IPAddress:
        """Resolve once; every answer must be allowed, the first is dialled."""
        if self._domains and address.host not in self._domains:
            raise RefusedError
        try:
            answers = await self._resolve(address.host, address.port)
        except (OSError, UnicodeError) as error:
            if is_out_of_files(error):
                raise
            answers = []
        ips = [_parse_ip(answer) for answer in answers]
        # A name that does not exist is refused like one that leads inwards: or else anybody could
        # ask which names there are.
        if not ips or not all(self._is_allowed(ip, address.port) for ip in ips):
            raise RefusedError
        return ips[0]

    def _is_allowed(self, ip: IPAddress, port: int) -> bool:
        return any(ip in network for network in self._networks) or (
            port in (80, 443) and is_public(ip)
        )

    async def _get(
        self, address: Address, ip: IPAddress, ref: MediaRef, budget: ByteBudget
    ) -> bytes | str:
        """One hop, by the bare transport: no cookies, proxies, redirects or log of addresses. The
        bytes, or where else they are."""

        async def note_connection(event: str, told: Mapping[str, Any]) -> None:
            # httpcore does not close it when its handshake is cancelled.
            if event == "connection.connect_tcp.complete":
                dialled.push_async_callback(told["return_value"].aclose)

        request = httpx.Request(
            "GET",
            httpx.URL(
                scheme=address.scheme,
                host=str(ip),
                port=address.port,
                raw_path=address.path.encode(),
            ),
            headers={
                "host": address.authority,
                "user-agent": f"litevl/{__version__}",
                "accept": "*/*",
                "accept-encoding": "identity",
                "connection": "close",
            },
            extensions={
                # The certificate is checked against the name, though an address is dialled.
                "sni_hostname": address.host,
                "timeout": {"connect": CONNECT_S},
                "trace": note_connection,
            },
        )
        async with (
            contextlib.AsyncExitStack() as dialled,
            httpx.AsyncHTTPTransport(verify=self._ssl, trust_env=False) as transport,
        ):
            response = await transport.handle_async_request(request)
            try:
                return await _read(response, ref, budget)
            finally:
                await response.aclose()


async def _read(response: httpx.Response, ref: MediaRef, budget: ByteBudget) -> bytes | str:
    location = response.headers.get("location")
    if response.status_code in (301, 302, 303, 307, 308) and location:
        return str(location)
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if response.status_code != 200 or encoding != "identity":
        raise _FailedError
    return await _read_body(response, ref, budget)


async def _read_body(response: httpx.Response, ref: MediaRef, budget: ByteBudget) -> bytes:
    """All of the body, measured against the limit of what it shows itself to be."""
    body = bytearray()
    expected = response.headers.get("content-length", "")
    size = int(expected) if expected.isdecimal() else 0
    check_size(size, "video", ref.param)
    kind: MediaKind | None = None
    async for chunk in response.aiter_raw():
        body += chunk
        budget.spend(len(chunk), kind or ref.declared, ref.param)
        if kind is None and len(body) >= HEAD:
            kind = sniff(bytes(body[:HEAD]), ref.param).kind
            check_size(size, kind, ref.param)
        check_size(len(body), kind or "video", ref.param)
    if not body:
        raise empty_error(ref)
    return bytes(body)


def _refused(ref: MediaRef) -> MediaError:
    return MediaError(
        ref.param,
        "the address is refused, or nobody knows its host: send a data: URL, or a"
        " percent-encoded http(s) URL of a public host on port 80 or 443 (see --media-networks and"
        " --allowed-media-domains)" + _about_proxies(),
        code=f"invalid_{ref.declared}_url",
    )


def _failed(ref: MediaRef) -> MediaError:
    return MediaError(
        ref.param,
        f"the {NOUN[ref.declared]} could not be downloaded: it must be answered 200,"
        f" uncompressed, within {SECONDS[ref.declared]:.0f} s and {MAX_REDIRECTS} redirects"
        + _about_proxies(),
        code=f"failed_to_download_{ref.declared}",
    )


def _about_proxies() -> str:
    """Where one leads out, it may be the only way, and for names too."""
    has_proxy = getproxies().keys() & {"http", "https", "all"}
    return "; this server's proxy is not used for that: send a data: URL" if has_proxy else ""
