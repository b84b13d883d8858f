"""What was costly to make, kept by its name for whoever needs it next, within a capacity.

`media/loader.py` keeps decoded frames so, and the engine the features of the vision tower: its
sequences hold theirs from the step that encodes or first touches them until the chunk that passes
them is complete. What nobody holds stays for later requests, the longest unused first to go. Knows
names and costs alone, so that the scheduler, which decides what is held, needs no torch.
"""

from collections import Counter, OrderedDict
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """Values by name. Cost and capacity are in the caller's unit: bytes, in litevl.

    What is held counts against the capacity but is never evicted: it may exceed it for a while.
    """

    def __init__(self, capacity: int = 0) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()  # oldest use first
        self._holders: Counter[Key] = Counter()
        self.used = 0  # the cost of all that is kept
        self.num_hits = 0  # holders who found a value, or one about to be put for another

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    @property
    def num_held(self) -> int:
        """Names that somebody holds, whose values are here or about to be."""
        return len(self._holders)

    def put(self, key: Key, value: Value, cost: int) -> None:
        """Keep a value instead of an earlier one of that name; one too large that nobody holds is
        not kept."""
        if cost > self._capacity and key not in self._holders:
            return
        self.used += cost - self._values.pop(key, (value, 0))[1]
        self._values[key] = (value, cost)
        self._evict()

    def get(self, key: Key) -> Value | None:
        return self[key] if key in self._values else None

    def __getitem__(self, key: Key) -> Value:
        self._values.move_to_end(key)
        return self._values[key][0]

    def hold(self, key: Key) -> None:
        """One more needs this name, whose value may still have to be made."""
        self.num_hits += key in self._values or key in self._holders
        self._holders[key] += 1

    def release(self, key: Key) -> None:
        """One less needs it."""
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._evict()

    def forget(self, key: Key) -> None:
        """Let go of a value that proved to be bad, unless somebody holds it: they will find out
        themselves, or the next one does."""
        if key in self._values and key not in self._holders:
            self.used -= self._values.pop(key)[1]

    def clear(self) -> None:
        """Forget what nobody holds, as when the device has run out of memory."""
        self._shrink(0)

    def _evict(self) -> None:
        if self.used > self._capacity:
            self._shrink(self._capacity)

    def _shrink(self, capacity: int) -> None:
        for key in [key for key in self._values if key not in self._holders]:
            if self.used <= capacity:
                return
            self.used -= self._values.pop(key)[1]
