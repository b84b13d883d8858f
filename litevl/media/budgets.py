"""How many bytes of files one request may bring, and all requests together.

`loader.py` keeps the books; `fetch.py` spends as it reads. `api/bodies.py` counts bodies in the
same way. Counts; holds no bytes.
"""

from litevl.errors import MediaError, UnavailableError
from litevl.media.sources import NOUN
from litevl.sequence import MediaKind

MAX_REQUEST_BYTES = 256 * 2**20  # of all files of one request, as they come
MAX_BYTES_IN_FLIGHT = 2 * MAX_REQUEST_BYTES  # of the files of all requests


class BytesInFlight:
    """Of the files, or the bodies, of all requests together. Belongs to one event loop."""

    def __init__(self, limit: int, noun: str) -> None:
        self.used = 0
        self._limit = limit
        self._noun = noun

    def take(self, num_bytes: int) -> None:
        """`UnavailableError`, and nothing taken, where it is more than is left."""
        if self.used + num_bytes > self._limit:
            message = f"Too many large {self._noun} are under way; try again in a moment."
            raise UnavailableError(message)
        self.used += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self.used -= num_bytes


class ByteBudget:
    """What one request may still bring, all its files together; closed when nobody needs them."""

    def __init__(self, in_flight: BytesInFlight | None = None) -> None:
        self._left = MAX_REQUEST_BYTES
        self._in_flight = in_flight or BytesInFlight(MAX_BYTES_IN_FLIGHT, "files")
        self._taken = 0

    def spend(self, num_bytes: int, kind: MediaKind, param: str) -> None:
        """`MediaError` too_large for the file that goes beyond it."""
        self._in_flight.take(num_bytes)
        self._taken += num_bytes
        self._left -= num_bytes
        if self._left < 0:
            raise MediaError(
                param,
                f"the {NOUN[kind]} takes the request beyond {MAX_REQUEST_BYTES >> 20} MiB: "
                "send less",
                code=f"{kind}_too_large",
            )

    def close(self) -> None:
        """Count none of them any more among those of all requests."""
        self._in_flight.give_back(self._taken)
        self._taken = 0
