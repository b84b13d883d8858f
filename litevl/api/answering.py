"""From a checked request to its answer: sequences made, run, and written, streamed or whole.

What `chat.py` and `completions.py` have in common after they have read their own request. Knows
neither messages nor media.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Iterator
from collections.abc import Sequence as Many
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from litevl.api.auth import caller_of
from litevl.api.bodies import let_go_of_body
from litevl.api.choices import Choice, Delta, Reader, read_deltas
from litevl.api.detokenizer import Detokenizer
from litevl.api.exchange import read_body, send_events, until_disconnect
from litevl.api.fields import JSONObject
from litevl.api.ports import Backend
from litevl.api.protocol import Streaming
from litevl.api.records import record_of
from litevl.api.responses import (
    DONE,
    AnswerHead,
    AnswerWriter,
    ChunkWriter,
    Form,
    usage_member,
    usage_object,
)
from litevl.api.sampling import Sampling
from litevl.api.service import Service
from litevl.errors import InvalidValueError
from litevl.sequence import FinishReason, Grammar, Prompt, Sequence, TokenMask

PIECE = 256 * 2**10  # bytes of a whole answer that are written at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What is kept of a request while it is answered: not its body, which can be large."""

    head: AnswerHead
    form: Form
    prompts: Many[Prompt]
    sampling: Sampling
    streaming: Streaming
    reader: Callable[[], Reader]  # a new one for each answer
    grammar: Grammar | None
    grammar_param: str  # the fields that errors about these name
    prompt_param: str
    calls_end_as: FinishReason = FinishReason.TOOL_CALLS
    more: JSONObject = field(default_factory=dict)  # litevl's own members of the answer


Accept = Callable[[Service, Backend, bytes, Scope], Coroutine[Any, Any, Accepted]]


class Generating:
    """An endpoint that generates, as an ASGI application; `accept` reads its requests."""

    def __init__(self, service: Service, accept: Accept) -> None:
        self._service = service
        self._accept = accept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the body accepted and answered, unless the client hangs up before."""
        service = self._service
        backend = service.ready_backend()
        # The body is handed on and not kept: the model may answer for minutes.
        accepting = self._accept(service, backend, await read_body(scope, receive), scope)
        with closing(accepting), service.admission.enter(scope):
            answering = _answer(service, backend, accepting, scope, send)
            await until_disconnect(receive, answering)


def new_head(prefix: str, model: str) -> AnswerHead:
    """A new id and the time."""
    return AnswerHead(id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=model)


async def _answer(
    service: Service,
    backend: Backend,
    accepting: Coroutine[Any, Any, Accepted],
    scope: Scope,
    send: Send,
) -> None:
    """Generate, and send what came in the way that the request asks for."""
    accepted = await accepting
    sequences = await new_sequences(service, backend, accepted, caller_of(scope))
    record = record_of(scope)
    record.accept(accepted.head.model, accepted.prompts, sequences)
    let_go_of_body(scope)
    choices = [_choice(backend, accepted, *each) for each in enumerate(sequences)]
    generation = service.generation(backend, sequences)
    async with aclosing(read_deltas(generation, choices, record.note)) as deltas:
        if accepted.streaming.stream:
            await send_events(_events(deltas, accepted), scope, send)
        else:
            await _send_whole(deltas, accepted, send)


async def new_sequences(
    service: Service, backend: Backend, accepted: Accepted, caller: bytes
) -> list[Sequence]:
    """A sequence for each answer to each prompt, in order; raises what cannot be sampled so."""
    wanted = [
        (prompt, params)
        for prompt in accepted.prompts
        for params in accepted.sampling.params(
            backend.card, len(prompt), service.draw_seed(), accepted.prompt_param
        )
    ]
    if len(wanted) > service.max_sequences:  # to wait would be in vain
        raise InvalidValueError(
            f"The request asks for {len(wanted)} answers, and this server works on "
            f"{service.max_sequences} at once, those that wait included: ask for fewer.",
            param="n" if len(accepted.prompts) == 1 else accepted.prompt_param,
        )
    return [
        Sequence(
            request_id=f"{accepted.head.id}-{index}",
            prompt=prompt,
            params=params,
            scope=caller,
            mask=await _mask(service, backend, accepted, prompt),
        )
        for index, (prompt, params) in enumerate(wanted)
    ]


async def _mask(
    service: Service, backend: Backend, accepted: Accepted, prompt: Prompt
) -> TokenMask | None:
    if accepted.grammar is None:
        return None
    return await service.in_worker(
        partial(
            backend.grammars.compile,
            accepted.grammar,
            after_thinking=prompt.is_thinking,
            param=accepted.grammar_param,
        )
    )


def _choice(backend: Backend, accepted: Accepted, index: int, sequence: Sequence) -> Choice:
    return Choice(
        index,
        sequence.request_id,
        detokenizer=Detokenizer(backend.preprocessor.token_bytes, accepted.sampling.stop),
        reader=accepted.reader(),
        token_name=backend.preprocessor.token_name,
        calls_end_as=accepted.calls_end_as,
    )


async def _send_whole(deltas: AsyncGenerator[Delta, None], accepted: Accepted, send: Send) -> None:
    """One answer, of the size that it says; nothing is sent before it is whole."""
    writer = AnswerWriter(accepted.head, accepted.form, accepted.more)
    async for delta in deltas:
        writer.add(delta)
    parts = writer.finish(usage_object(accepted.prompts, writer.latest.values()))
    size = str(sum(map(len, parts))).encode()
    headers = [(b"content-length", size), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for body in _in_pieces(parts):
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(0)  # the kernel may take all that there is, and others wait
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _in_pieces(parts: Iterable[bytes | bytearray]) -> Iterator[bytes]:
    """What the parts are together, cut anew: no piece is much longer than `PIECE`."""
    piece = b""
    for part in parts:
        for start in range(0, len(part), PIECE):
            piece += part[start : start + PIECE]
            if len(piece) >= PIECE:
                yield piece
                piece = b""
    yield piece


async def _events(
    deltas: AsyncGenerator[Delta, None], accepted: Accepted
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: each choice's first with its first token, then wherever there is news."""
    writer = ChunkWriter(accepted.head, accepted.form, accepted.more)
    latest: dict[int, Delta] = {}
    async for delta in deltas:
        latest[delta.index] = delta
        is_news = delta.pieces or delta.scores or delta.finish_reason
        if is_news or not writer.has_begun(delta.index):
            yield writer.delta(delta, _usage_of_chunk(accepted, latest.values()))
    if accepted.streaming.include_usage:
        yield writer.usage(usage_object(accepted.prompts, latest.values()))
    yield DONE


def _usage_of_chunk(accepted: Accepted, latest: Collection[Delta]) -> str:
    if accepted.streaming.continuous_usage_stats:
        return usage_member(usage_object(accepted.prompts, latest))
    return usage_member(None) if accepted.streaming.include_usage else ""
