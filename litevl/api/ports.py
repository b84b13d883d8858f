"""What the HTTP side needs of the rest, as Protocols: a fake engine can stand behind all of it.

Implemented by `engine/engine.py` and composed in `cli.py`; used by `service.py` and `chat.py`.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

from litevl.sequence import (
    Conversation,
    Deliver,
    Health,
    LoadedMedia,
    MediaRef,
    ModelCard,
    Prompt,
    Sequence,
    ToolFormat,
)


class Engine(Protocol):
    """A thread that turns sequences into tokens."""

    def start(self, deliver: Deliver) -> None:
        """Start the thread; it calls `deliver` once a step, a request's outputs in order."""
        ...

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; from any thread.

        Raises QueueFullError, ContextLengthError or UnavailableError, and keeps nothing then.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Free a request within one step; nothing more is delivered. Unknown ids are ignored."""
        ...

    def health(self) -> Health:
        """READY, STALLED or DEAD, from the heartbeat of the step."""
        ...

    def stop(self) -> None:
        """End the thread; what still runs is delivered as an error."""
        ...


class Preprocessor(Protocol):
    """Conversations and pixels to ids. Slow: called in worker threads, several at once."""

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls."""
        ...

    def prepare(self, conversation: Conversation, media: Many[LoadedMedia]) -> Prompt:
        """Raises InvalidValueError (what the chat template refuses) or ContextLengthError."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token, perhaps part of a character; b"" for control tokens."""
        ...


class MediaLoader(Protocol):
    """References to pixels, within the request's limits and deadlines."""

    async def load(self, refs: Many[MediaRef], scope: bytes = b"") -> list[LoadedMedia]: ...

    async def close(self) -> None:
        """End the children; later loads raise UnavailableError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A loaded model, ready to answer."""

    card: ModelCard
    engine: Engine
    preprocessor: Preprocessor
    media: MediaLoader
