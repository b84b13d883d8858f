"""How much may be under way at once, from a body that has come to the last byte of its answer:
requests by number, and the pixels that they hold.

`Service` has one; the endpoints enter it. The engine's own queue counts what is ready to run; this
counts, before that, what is still downloaded, decoded and prepared, and the pixels of both. Lives
on the event loop. Knows no engine.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from starlette.types import Scope

from litevl.errors import QueueFullError, UnavailableError
from litevl.machine import memory
from litevl.media.loader import Fit
from litevl.sequence import PlannedMedia

WAIT_S = 60.0  # for room; as long as in the engine's queue
PIXEL_BYTES = 9  # decoded, and twice as patches: until the answer is out, to be encoded again
MEMORY_SHARE = 4  # this part of the memory of machine or container is for pixels

_CLAIM = "litevl.pixels"  # in the scope


def pixels_that_fit() -> int:
    """How many pixels this process can hold at once."""
    return memory().total // (MEMORY_SHARE * PIXEL_BYTES)


@dataclass(slots=True, eq=False)
class _Claim:
    """What one request wants and has."""

    wanted: int = 0
    taken: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """Who comes when it is full is told so; who finds no room for pixels waits in line."""

    def __init__(self, max_requests: int, max_pixels: int) -> None:
        self.num_requests = 0
        self.num_pixels = 0
        self._max_requests = max_requests
        self._max_pixels = max_pixels
        self._waiting: deque[_Claim] = deque()

    @contextmanager
    def enter(self, scope: Scope) -> Iterator[None]:
        """Count a request, and whatever `hold_pixels` takes for it, while this is entered."""
        if self.num_requests >= self._max_requests:
            raise QueueFullError("Too many requests are under way; try again in a moment.")
        claim = scope[_CLAIM] = _Claim()
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1
            self.num_pixels -= claim.taken
            self._let_in()

    async def hold_pixels(self, scope: Scope, pixels: int) -> None:
        """Wait for room for so many; more than there can ever be are let in alone.

        `UnavailableError` where there is none in time.
        """
        if not pixels:  # texts stand in nobody's line
            return
        claim: _Claim = scope[_CLAIM]
        claim.wanted = min(pixels, self._max_pixels)
        self._waiting.append(claim)
        self._let_in()
        try:
            async with asyncio.timeout(WAIT_S):
                await claim.room.wait()
        except TimeoutError:
            raise UnavailableError("Too many pictures are under way; try again later.") from None
        finally:
            with suppress(ValueError):  # it was let in
                self._waiting.remove(claim)
                self._let_in()

    def _let_in(self) -> None:
        """Those who wait, in their order, as long as there is room."""
        while self._waiting and self.num_pixels + self._waiting[0].wanted <= self._max_pixels:
            claim = self._waiting.popleft()
            claim.taken = claim.wanted
            self.num_pixels += claim.taken
            claim.room.set()

    def holding(self, scope: Scope, fit: Fit | None) -> Fit:
        """`fit`, and then room for what it made of the media: before any of it is decoded."""

        async def fitted(planned: list[PlannedMedia]) -> list[PlannedMedia]:
            if fit:
                planned = await fit(planned)
            await self.hold_pixels(scope, _pixels(planned))
            return planned

        return fitted


def _pixels(planned: Iterable[PlannedMedia]) -> int:
    return sum(
        each.plan.width * each.plan.height * len(each.plan.frame_indices) for each in planned
    )
