"""Tokens -> deltas: the answers to one request as they come, each with text, counts and an end.

`answering.py` makes one `Choice` for every sequence and reads `read_deltas`. Knows neither JSON nor
how the engine works.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

from litevl.api.answer import CallStart, Content, Piece
from litevl.api.detokenizer import Detokenizer
from litevl.api.service import Generation
from litevl.sequence import FinishReason, StepOutput, TokenLogprobs

TURN = 64  # outputs that are read before other clients have their turn


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token's bytes and how likely it was; `top` are the likeliest in its place."""

    text: bytes
    logprob: float
    top: tuple["ScoredToken", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What can be sent now of one choice, and its counts so far."""

    index: int
    pieces: Many[Piece]
    scores: tuple[ScoredToken, ...] = ()  # of the tokens that came, if they were asked for
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    finish_reason: FinishReason | None = None


class Reader(Protocol):
    """Tells what a text is made of, wherever it is cut."""

    @property
    def is_reasoning(self) -> bool: ...

    @property
    def has_open_call(self) -> bool: ...

    def push(self, text: str) -> list[Piece]: ...

    def flush(self) -> list[Piece]: ...


class PlainReader:
    """All is content."""

    is_reasoning = False
    has_open_call = False

    def push(self, text: str) -> list[Piece]:
        return [Content(text)] if text else []

    def flush(self) -> list[Piece]:
        return []


class Choice:
    """One answer under way."""

    def __init__(
        self,
        index: int,
        request_id: str,
        *,
        detokenizer: Detokenizer,
        reader: Reader,
        token_name: Callable[[int], bytes],
        calls_end_as: FinishReason = FinishReason.TOOL_CALLS,
    ) -> None:
        """`token_name` spells a token for the client; an answer that stops after calling tools
        ends as `calls_end_as`."""
        self.index = index
        self.request_id = request_id
        self._detokenizer = detokenizer
        self._reader = reader
        self._token_name = token_name
        self._calls_end_as = calls_end_as
        self._has_calls = False
        self._num_tokens = 0
        self._num_reasoning = 0

    def read(self, outputs: Iterable[StepOutput]) -> Delta:
        """What some steps gave, up to the stop string or the end that is among them."""
        pieces: list[Piece] = []
        scores: list[ScoredToken] = []
        reason = None
        cached = 0
        for output in outputs:
            cached = output.num_cached_tokens
            pieces += self._push(output, scores)
            reason = FinishReason.STOP if self._detokenizer.stopped else output.finish_reason
            if reason:
                break
        if reason:
            pieces += [*self._reader.push(self._detokenizer.flush()), *self._reader.flush()]
        self._has_calls |= any(isinstance(piece, CallStart) for piece in pieces)
        # A stop string amid a call must not make it look whole.
        is_cut = self._detokenizer.stopped and self._reader.has_open_call
        if reason is FinishReason.STOP and self._has_calls and not is_cut:
            reason = self._calls_end_as
        return Delta(
            index=self.index,
            pieces=pieces,
            scores=tuple(scores),
            completion_tokens=self._num_tokens,
            reasoning_tokens=self._num_reasoning,
            cached_tokens=cached,
            finish_reason=reason,
        )

    def _push(self, output: StepOutput, scores: list[ScoredToken]) -> list[Piece]:
        if output.token_id is None:
            return []
        self._num_tokens += 1
        if output.finish_reason is FinishReason.STOP:  # a stop token is no part of the answer
            return []
        if output.logprobs:
            scores.append(self._scored(output.token_id, output.logprobs))
        pieces = self._reader.push(self._detokenizer.push(output.token_id))
        self._num_reasoning += self._reader.is_reasoning
        return pieces

    def _scored(self, token_id: int, logprobs: TokenLogprobs) -> ScoredToken:
        top = tuple(ScoredToken(self._token_name(token), score) for token, score in logprobs.top)
        return ScoredToken(self._token_name(token_id), logprobs.chosen, top)


async def read_deltas(
    generation: Generation, choices: Many[Choice], watch: Callable[[Delta], None]
) -> AsyncGenerator[Delta, None]:
    """The answers as they come; the last delta of each choice, and only that, has a finish reason.

    The engine has let go of a choice when its last delta is yielded, however slow the client is.
    `watch` sees each delta before that.
    """
    running = {choice.request_id: choice for choice in choices}
    with generation:
        while generation.is_open:
            outputs = await generation.take()
            for start in range(0, len(outputs), TURN):
                if start:
                    await asyncio.sleep(0)
                for delta in _read(generation, running, outputs[start : start + TURN]):
                    watch(delta)
                    yield delta


def _read(
    generation: Generation, running: dict[str, Choice], outputs: Iterable[StepOutput]
) -> list[Delta]:
    """What some outputs say of the choices that run; one that ends does so for all."""
    grouped: dict[str, list[StepOutput]] = {}
    for output in outputs:
        grouped.setdefault(output.request_id, []).append(output)
    deltas = []
    for name, some in grouped.items():
        if choice := running.get(name):
            deltas.append(choice.read(some))
            if deltas[-1].finish_reason:
                generation.end(name)
                del running[name]
    return deltas
