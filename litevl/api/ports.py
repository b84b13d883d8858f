"""What the HTTP side needs of the rest, as Protocols: a fake engine can stand behind all of it.

Implemented by `engine`, `models` and `media`, composed in `cli.py`; used by `service.py` and the
endpoints.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

from litevl.health import EngineStats, Health
from litevl.media.loader import Fit
from litevl.sequence import (
    Conversation,
    Deliver,
    Grammar,
    LoadedMedia,
    MediaRef,
    ModelCard,
    PlannedMedia,
    Prompt,
    PromptSize,
    Sequence,
    TokenMask,
    ToolFormat,
)


class Engine(Protocol):
    """A thread that turns sequences into tokens."""

    def start(self, deliver: Deliver) -> None:
        """Start the thread; it calls `deliver` once a step, a request's outputs in order."""

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; from any thread.

        Raises QueueFullError, ContextLengthError or UnavailableError, and keeps nothing then.
        """

    def abort(self, request_id: str) -> None:
        """Free a request within one step; nothing more is delivered. Unknown ids are ignored."""

    def health(self) -> Health:
        """READY, STALLED or DEAD, from the heartbeat of the step."""

    def stats(self) -> EngineStats:
        """What it holds and has counted; from any thread, without waiting for a step."""

    def stop(self) -> None:
        """End the thread; what still runs is delivered as an error."""


class Preprocessor(Protocol):
    """Messages and pixels to ids. Slow: called in a worker thread; safe to call from several."""

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools."""

    def prepare(self, conversation: Conversation, media: Many[LoadedMedia]) -> Prompt: ...

    def measure(self, conversation: Conversation, media: Many[PlannedMedia]) -> PromptSize:
        """What `prepare` would make, without pixels."""

    def fit(
        self, conversation: Conversation, media: Many[PlannedMedia], reserve: int
    ) -> list[PlannedMedia]:
        """The media shrunk and thinned until the prompt leaves `reserve` tokens of the context."""

    def text_prompt(self, text: str | Many[int]) -> Prompt:
        """Text, or token ids, as they are: without a chat template."""

    def decode(self, token_ids: Many[int]) -> str:
        """The text of tokens, control tokens included; ids beyond the vocabulary are nothing."""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token, perhaps part of a character; b"" for control tokens."""

    def token_name(self, token_id: int) -> bytes:
        """The same, but control tokens by their name."""


class GrammarCompiler(Protocol):
    """What answers must look like, as masks of tokens."""

    def compile(self, grammar: Grammar, *, after_thinking: bool, param: str) -> TokenMask:
        """A mask of its own for one answer; slow, from any thread.

        After thinking: the form begins where the model ends its open thought. InvalidValueError
        for `param` where the form cannot be.
        """


class MediaLoader(Protocol):
    """References to pixels, within the request's limits and deadlines."""

    async def load(
        self, refs: Many[MediaRef], scope: bytes = b"", fit: Fit | None = None
    ) -> list[LoadedMedia]: ...

    async def measure(
        self, refs: Many[MediaRef], scope: bytes = b"", fit: Fit | None = None
    ) -> list[PlannedMedia]:
        """What `load` would decode."""

    async def close(self) -> None:
        """End the children; later loads raise UnavailableError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A loaded model, ready to answer."""

    card: ModelCard
    engine: Engine
    preprocessor: Preprocessor
    grammars: GrammarCompiler
    media: MediaLoader
