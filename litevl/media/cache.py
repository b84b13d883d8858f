"""Decoded media kept for the next request about them, least recently used first to go.

Used by `loader.py` on the event loop; knows bytes and names, not what makes two items equal.
"""

from collections import OrderedDict

from litevl.sequence import LoadedMedia


class MediaCache:
    """Loaded media by name, bounded by the bytes of their frames."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._media: OrderedDict[bytes, LoadedMedia] = OrderedDict()  # oldest use first
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes of all frames kept."""
        return self._used

    def get(self, name: bytes) -> LoadedMedia | None:
        if name in self._media:
            self._media.move_to_end(name)
        return self._media.get(name)

    def put(self, name: bytes, media: LoadedMedia) -> None:
        """Keep an item, whose frames must not change any more, instead of an earlier one of that
        name; one too large is not kept."""
        if media.frames.nbytes > self._capacity:
            return
        if earlier := self._media.pop(name, None):
            self._used -= earlier.frames.nbytes
        self._media[name] = media
        self._used += media.frames.nbytes
        while self._used > self._capacity:
            _, dropped = self._media.popitem(last=False)
            self._used -= dropped.frames.nbytes
