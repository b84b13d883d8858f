"""Token ids -> text that is safe to send: whole characters, and nothing of a stop string.

`answering.py` makes one for each answer, `choices.py` pushes into it. Knows no tokenizer, only the
bytes that a token stands for.
"""

import codecs
from collections.abc import Callable


class Detokenizer:
    """`push` and `flush` together give the text up to the stop string that is complete first.

    Where the text is cut does not depend on how it was spread over tokens. Bytes that are no UTF-8
    become U+FFFD.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._token_bytes = token_bytes
        self._stop = stop
        self._starts = frozenset(each[0] for each in stop)
        self._longest = max(map(len, stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # could be the start of a stop string

    def push(self, token_id: int) -> str:
        """Take the next token; the text that can be sent now, often none."""
        return self._release(self._decoder.decode(self._token_bytes(token_id)))

    def flush(self) -> str:
        """End the text; what was held back."""
        text = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        cut = self._find_stop(text)
        self.stopped = cut is not None
        if cut is None:
            cut = len(text) - self._held_length(text)
        self._held = "" if self.stopped else text[cut:]
        return text[:cut]

    def _find_stop(self, text: str) -> int | None:
        """Where the stop string begins that is complete first."""
        found = [(at + len(each), at) for each in self._stop if (at := text.find(each)) >= 0]
        return min(found)[1] if found else None

    def _held_length(self, text: str) -> int:
        """Length of the longest end of the text that could start a stop string."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if text[-length] in self._starts:
                end = text[-length:]
                if any(each.startswith(end) for each in self._stop):
                    return length
        return 0
