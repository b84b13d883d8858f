"""How long one thread keeps the others from the interpreter, while a large body is read in it.

Used by `api/exchange.py` and `media/loader.py` around such work. With Python's turns of 5 ms a
stream would wait for several of them at every frame; always shorter ones would slow the engine.
"""

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

SHORT_S = 0.0003
USUAL_S = sys.getswitchinterval()

T = TypeVar("T")


class _Turns:
    """The interval is the interpreter's: it is short as long as anybody works."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_working = 0

    def count(self, change: int) -> None:
        with self._lock:
            self._num_working += change
            sys.setswitchinterval(SHORT_S if self._num_working else USUAL_S)


_turns = _Turns()


def in_short_turns(work: Callable[..., T], *args: object) -> T:
    """`work(*args)`, with short turns for all threads until the last such work is done."""
    _turns.count(1)
    try:
        return work(*args)
    finally:
        _turns.count(-1)
