"""How many bytes of bodies there may be: in one request, and in all of them together.

`app.py` puts `BodyLimit` behind the check of the key. A body counts from its declared length on,
before any of it is read, until nobody needs it: `let_go_of_body`, or the end of the request in
whatever way. Knows nothing of what bodies hold.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litevl.errors import RequestTooLargeError
from litevl.media.budgets import BytesInFlight

MAX_BYTES_IN_FLIGHT = 384 * 2**20  # four of the largest; a body costs about thrice itself in memory

_CLAIM = "litevl.body"  # in the scope


class _Claim:
    """What one request has taken of the budget, and may take at most."""

    def __init__(self, budget: BytesInFlight, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self._taken = 0

    def grow_to(self, size: int) -> None:
        """Have room for a body of so many bytes at least, or raise."""
        if size > self._limit:
            raise RequestTooLargeError(
                f"The body is larger than {self._limit} bytes, the limit set by --max-body-size."
            )
        if size > self._taken:
            self._budget.take(size - self._taken)
            self._taken = size

    def end(self) -> None:
        self._budget.give_back(self._taken)
        self._taken = 0


class BodyLimit:
    """413 for a body that is declared, or turns out, larger than `limit` bytes; 503 for one that
    goes beyond the budget of all."""

    def __init__(self, app: ASGIApp, limit: int, budget: BytesInFlight) -> None:
        self._app = app
        self._limit = limit
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        claim = _Claim(self._budget, self._limit)
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            if size := len(message.get("body", b"")):
                received += size
                claim.grow_to(received)
            return message

        try:
            claim.grow_to(int(Headers(scope=scope).get("content-length", "0")))
            await self._app({**scope, _CLAIM: claim}, counted_receive, send)
        finally:
            claim.end()


def let_go_of_body(scope: Scope) -> None:
    """Stop counting a body that has been turned into something else."""
    claim: _Claim = scope[_CLAIM]
    claim.end()
