"""A backend without a model for `server.py`: one plain token a step for every sequence.

It answers as fast as the server sends, and no faster: a step follows when the frames of the last
are out. Imports no torch.
"""

import threading
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litevl.api.ports import Backend
from litevl.health import Health
from litevl.sequence import (
    Conversation,
    Deliver,
    FinishReason,
    LoadedMedia,
    ModelCard,
    Prompt,
    SamplingDefaults,
    Sequence,
    StepOutput,
)

WORD = 0
TOKEN_FRAME = b"data: {"
PATIENCE_S = 1.0  # a client that went away leaves frames that will never be sent
MAX_TOKENS = 10**6


class FrameCounter:
    """Counts the frames with tokens that an application sends, and lets another thread wait."""

    def __init__(self) -> None:
        self._sent = 0
        self._wanted = 0
        self._reached = threading.Event()

    def count_in(self, app: ASGIApp) -> ASGIApp:
        """The same application, counted. All of it runs on the event loop."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def count(message: Message) -> None:
                await send(message)
                if message.get("body", b"").startswith(TOKEN_FRAME):
                    self._sent += 1
                    if self._sent >= self._wanted:
                        self._reached.set()

            await app(scope, receive, count)

        return counted

    def expect(self, count: int) -> None:
        """Wait, from the engine's thread, until so many more have been sent."""
        self._reached.wait(PATIENCE_S)
        self._wanted = self._sent + count
        self._reached.clear()


class NullEngine:
    """Gives every sequence the same word until it has enough."""

    def __init__(self, frames: FrameCounter) -> None:
        self._frames = frames
        self._deliver: Deliver = lambda outputs: None
        self._left: dict[str, int] = {}
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="null-engine", daemon=True)

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._thread.start()

    def add(self, sequence: Sequence) -> None:
        with self._changed:
            self._left[sequence.request_id] = sequence.params.max_tokens
            self._changed.notify()

    def abort(self, request_id: str) -> None:
        with self._changed:
            self._left.pop(request_id, None)

    def health(self) -> Health:
        return Health.READY

    def stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._left or self._is_stopping)
                if self._is_stopping:
                    return
                outputs = [self._advance(name) for name in list(self._left)]
            self._frames.expect(len(outputs))
            self._deliver(outputs)

    def _advance(self, name: str) -> StepOutput:
        self._left[name] -= 1
        if self._left[name]:
            return StepOutput(request_id=name, token_id=WORD)
        del self._left[name]
        return StepOutput(request_id=name, token_id=WORD, finish_reason=FinishReason.LENGTH)


class _Preprocessor:
    """As much of one as a chat completion without media, tools or forms asks for."""

    tool_format = "hermes"

    def prepare(self, conversation: Conversation, media: Many[LoadedMedia]) -> Prompt:
        ids = np.zeros(1, dtype=np.int64)
        return Prompt(token_ids=ids, positions=np.zeros((3, 1), np.int64), position_delta=0)

    def token_bytes(self, token_id: int) -> bytes:
        return b" word"

    token_name = token_bytes


class _Media:
    async def load(self, *_request: object) -> list[LoadedMedia]:
        return []

    async def close(self) -> None:
        pass


def null_backend(engine: NullEngine) -> Backend:
    """What `Service.attach` takes."""
    card = ModelCard(
        names=("null",),
        created=0,
        max_model_len=MAX_TOKENS,
        vocab_size=1,
        eos_token_ids=frozenset(),
        defaults=SamplingDefaults(),
    )
    nothing: Any = None
    preprocessor: Any = _Preprocessor()
    media: Any = _Media()
    null_engine: Any = engine
    return Backend(
        card=card, engine=null_engine, preprocessor=preprocessor, grammars=nothing, media=media
    )
