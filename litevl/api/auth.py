"""Who may call. Used by `app.py`; knows the open paths and the keys, not what lies behind them."""

import hashlib
import hmac
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from litevl.api.records import record_of
from litevl.errors import AuthenticationError, ForeignOriginError

# Everything else, routes that do not exist included, asks for a key where one is configured.
# (the page's own files are open too).
OPEN_PATHS = frozenset({"/", "/health", "/health/live", "/version", "/openapi.json", "/metrics"})

_CALLER = "litevl.caller"

Headers = Iterable[tuple[bytes, bytes]]  # names in lower case, as ASGI has them


class Keys:
    """The keys that may call, kept as digests. Without any, everybody may."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def match(self, headers: Headers) -> bytes | None:
        """The digest of the key that a request carries, None without a valid one, and an empty one
        where none is asked for. The time taken tells nothing about the keys."""
        if not self._digests:
            return b""
        offered = [_digest(key) for key in _offered_keys(headers)]
        matches = [
            ours for key in offered for ours in self._digests if hmac.compare_digest(key, ours)
        ]
        return matches[0] if matches else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _offered_keys(headers: Headers) -> list[bytes]:
    """`Authorization: Bearer KEY` or `KEY`, `x-api-key: KEY`, `api-key: KEY`."""
    keys = []
    for name, value in headers:
        value = value.strip()
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            keys.append(rest.strip() if scheme.lower() == b"bearer" else value)
        elif name in (b"x-api-key", b"api-key"):
            keys.append(value)
    return keys


_OWN_HOST = re.compile(
    rb"(?:(?:[a-z0-9-]+\.)*localhost|[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?",
    re.IGNORECASE,
)


def is_of_this_machine(headers: Headers) -> bool:
    """Whether no web page of another origin can have sent this.

    Such a page may name a host that it owns and points here (DNS rebinding), or send a form with
    its own origin; only a browser's extensions have origins of other schemes.
    """
    found = dict(headers)
    host = found.get(b"host", b"localhost")
    scheme, _, authority = found.get(b"origin", b"http://" + host).lower().partition(b"://")
    is_own = authority == host.lower() if scheme in (b"http", b"https") else bool(authority)
    return is_own and bool(_OWN_HOST.fullmatch(host))


class Authentication:
    """Answers 401 before a body is read, wherever the path is not open; without a key, if it is for
    this machine alone, 403 to pages of other origins."""

    def __init__(
        self, app: ASGIApp, keys: Keys, open_paths: frozenset[str], *, only_this_machine: bool
    ) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths
        self._only_this_machine = only_this_machine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = self._keys.match(scope["headers"])
        if scope["path"] not in self._open_paths:
            if caller is None:
                raise AuthenticationError(
                    "This server asks for a valid API key: send `Authorization: Bearer KEY`."
                )
            if self._only_this_machine and not is_of_this_machine(scope["headers"]):
                raise ForeignOriginError(
                    "Without a key this server answers no web pages of other origins, and only as"
                    " localhost or by its address: give it a key (--api-key-file)."
                )
            record_of(scope).caller = caller
        await self._app({**scope, _CALLER: caller or b""}, receive, send)


def caller_of(scope: Scope) -> bytes:
    """Whose request it is: what one caller sent or asked is never shared with another."""
    caller: bytes = scope[_CALLER]
    return caller
