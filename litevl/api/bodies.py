"""How many bytes of bodies there may be: in one request, and in all of them together.

`app.py` puts `BodyLimit` behind the check of the key. What has come of a body counts until nobody
needs it: `let_go_of_body`, or the end of the request in whatever way. Not what is only declared,
nor the beginning of a body: a few slow uploads would refuse everybody's text. Knows nothing of what
bodies hold.
"""

from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litevl.errors import RequestTooLargeError
from litevl.machine import memory
from litevl.media.budgets import BytesInFlight

MAX_BYTES_IN_FLIGHT = 384 * 2**20  # four of the largest
MEMORY_SHARE = 16  # a body costs about four times itself: all together, a quarter of the memory
UNCOUNTED = 256 * 2**10  # of each body: as much as texts need; 1024 connections have 256 MiB of it

_CLAIM = "litevl.body"  # in the scope


def bytes_that_fit(max_body_size: int) -> int:
    """How many there may be in all: one of the largest bodies, however little memory there is."""
    return max(max_body_size, min(MAX_BYTES_IN_FLIGHT, memory().total // MEMORY_SHARE))


class _Claim:
    """What one request has taken of the budget, and may take at most."""

    def __init__(self, budget: BytesInFlight, limit: int, uncounted: int) -> None:
        self._budget = budget
        self._limit = limit
        self._uncounted = uncounted
        self._taken = 0

    def check(self, size: int) -> None:
        """Raise where no body may have so many bytes."""
        if size > self._limit:
            raise RequestTooLargeError(
                f"The body is larger than {self._limit} bytes, the limit set by --max-body-size."
            )

    def grow_to(self, size: int) -> None:
        """Have room for a body of which so many bytes have come, or raise."""
        self.check(size)
        counted = size - self._uncounted
        if counted > self._taken:
            self._budget.take(counted - self._taken)
            self._taken = counted

    def end(self) -> None:
        self._budget.give_back(self._taken)
        self._taken = 0


class BodyLimit:
    """413 for a body that is declared, or turns out, larger than `limit` bytes; 503 for one that,
    beyond its first `uncounted` bytes, goes beyond the budget of all."""

    def __init__(
        self, app: ASGIApp, limit: int, budget: BytesInFlight, uncounted: int = UNCOUNTED
    ) -> None:
        self._app = app
        self._claim = partial(_Claim, budget, limit, uncounted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        claim = self._claim()
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            if size := len(message.get("body", b"")):
                received += size
                claim.grow_to(received)
            return message

        try:
            claim.check(int(Headers(scope=scope).get("content-length", "0")))
            await self._app({**scope, _CLAIM: claim}, counted_receive, send)
        finally:
            claim.end()


def let_go_of_body(scope: Scope) -> None:
    """Stop counting a body that has been turned into something else."""
    claim: _Claim = scope[_CLAIM]
    claim.end()
