"""Features of the vision tower, kept by what was encoded, so that no picture is encoded twice.

A sequence holds its features from the step that encodes or first touches them until the chunk that
passes them is complete; what nobody holds stays for later requests, least recently used first,
within a capacity. Generic in what a feature is, so that the scheduler, which decides what is held,
needs no torch. Filled by `runner.py`, held and released by `scheduler.py`.
"""

from collections import Counter, OrderedDict
from typing import Generic, TypeVar

from litevl.sequence import MediaKey

Feature = TypeVar("Feature")


class EncoderCache(Generic[Feature]):
    """Features by scope and digest. Cost and capacity are in the caller's unit: bytes, in litevl.

    What is held counts against the capacity but is never evicted: it may exceed it for a while.
    """

    def __init__(self, capacity: int = 0) -> None:
        self._capacity = capacity
        self._features: OrderedDict[MediaKey, tuple[Feature, int]] = (
            OrderedDict()
        )  # oldest use first
        self._holders: Counter[MediaKey] = Counter()
        self._used = 0
        self.num_hits = 0  # holders who found an item encoded, or about to be for another

    def __contains__(self, key: MediaKey) -> bool:
        return key in self._features

    def __len__(self) -> int:
        return len(self._features)

    @property
    def num_held(self) -> int:
        """Items that some sequence holds, encoded or about to be."""
        return len(self._holders)

    @property
    def used(self) -> int:
        """The cost of all that is kept."""
        return self._used

    def put(self, key: MediaKey, feature: Feature, cost: int) -> None:
        if key not in self._features:
            self._used += cost
        self._features[key] = (feature, cost)
        self._evict()

    def get(self, key: MediaKey) -> Feature:
        self._features.move_to_end(key)
        return self._features[key][0]

    def hold(self, key: MediaKey) -> None:
        """One more sequence needs this item, which may still have to be encoded."""
        self.num_hits += key in self._features or key in self._holders
        self._holders[key] += 1

    def release(self, key: MediaKey) -> None:
        """One sequence less needs it."""
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._evict()

    def clear(self) -> None:
        """Forget what nobody holds, as when the device has run out of memory."""
        self._shrink(0)

    def _evict(self) -> None:
        if self._used > self._capacity:
            self._shrink(self._capacity)

    def _shrink(self, capacity: int) -> None:
        for key in [key for key in self._features if key not in self._holders]:
            if self._used <= capacity:
                return
            self._used -= self._features.pop(key)[1]
