"""From a checked request to its answer: sequences made, run, and written, streamed or whole.

What `chat.py` and `completions.py` have in common after they have read their own request. Knows
neither messages nor media.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from collections.abc import Sequence as Many
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from litevl.api.auth import caller_of
from litevl.api.bodies import let_go_of_body
from litevl.api.choices import Choice, Delta, Reader, Tally, gather, read_deltas
from litevl.api.detokenizer import Detokenizer
from litevl.api.exchange import read_body, send_events, until_disconnect
from litevl.api.fields import JSONObject
from litevl.api.ports import Backend
from litevl.api.protocol import Streaming
from litevl.api.records import record_of
from litevl.api.responses import (
    DONE,
    AnswerHead,
    ChunkWriter,
    Form,
    Usage,
    usage_member,
    whole_answer,
)
from litevl.api.sampling import Sampling
from litevl.api.service import Service
from litevl.sequence import FinishReason, Grammar, Prompt, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What is kept of a request while it is answered: not its body, which can be large."""

    head: AnswerHead
    form: Form
    prompts: Many[Prompt]
    sequences: Many[Sequence]
    readers: Many[Reader]  # one for each sequence
    streaming: Streaming
    stop: tuple[str, ...]
    calls_end_as: FinishReason = FinishReason.TOOL_CALLS
    more: JSONObject = field(default_factory=dict)  # litevl's own members of the answer

    def usage(self, tally: Tally) -> Usage:
        return Usage.of(self.prompts, tally)


def new_head(prefix: str, model: str) -> AnswerHead:
    """A new id and the time."""
    return AnswerHead(id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=model)


async def new_sequences(
    service: Service,
    backend: Backend,
    prompts: Many[Prompt],
    sampling: Sampling,
    *,
    name: str,
    scope: Scope,
    grammar: Grammar | None,
    grammar_param: str,
    prompt_param: str,
) -> list[Sequence]:
    """A sequence for each answer to each prompt, in order; raises what cannot be sampled so.

    `grammar_param` and `prompt_param` are the fields that errors about them name.
    """
    params = [
        each
        for prompt in prompts
        for each in sampling.params(backend.card, len(prompt), service.draw_seed(), prompt_param)
    ]
    sequences = []
    for index, each in enumerate(params):
        prompt = prompts[index // sampling.n]
        mask = None
        if grammar:
            compile_ = partial(backend.grammars.compile, grammar, param=grammar_param)
            mask = await service.in_worker(partial(compile_, after_thinking=prompt.is_thinking))
        sequences.append(
            Sequence(
                request_id=f"{name}-{index}",
                prompt=prompt,
                params=each,
                scope=caller_of(scope),
                mask=mask,
            )
        )
    return sequences


Accept = Callable[[Backend, bytes, Scope], Coroutine[Any, Any, Accepted]]


async def answer(
    service: Service, accept: Accept, scope: Scope, receive: Receive, send: Send
) -> None:
    """Have the body accepted and answered, unless the client hangs up before."""
    backend = service.ready_backend()
    # The body is handed on and not kept: the model may answer for minutes.
    accepting = accept(backend, await read_body(scope, receive), scope)
    with closing(accepting), service.admission.enter(scope):
        await until_disconnect(receive, _answer(service, backend, accepting, scope, receive, send))


async def _answer(
    service: Service,
    backend: Backend,
    accepting: Coroutine[Any, Any, Accepted],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Generate, and send what came in the way that the request asks for."""
    accepted = await accepting
    record = record_of(scope)
    record.accept(accepted.head.model, accepted.prompts, accepted.sequences)
    let_go_of_body(scope)
    token_bytes = backend.preprocessor.token_bytes
    choices = [
        Choice(
            index,
            sequence.request_id,
            detokenizer=Detokenizer(token_bytes, accepted.stop),
            reader=reader,
            token_name=backend.preprocessor.token_name,
            calls_end_as=accepted.calls_end_as,
        )
        for index, (sequence, reader) in enumerate(
            zip(accepted.sequences, accepted.readers, strict=True)
        )
    ]
    generation = service.generation(backend, accepted.sequences)
    async with aclosing(read_deltas(generation, choices, record.note)) as deltas:
        if accepted.streaming.stream:
            await send_events(_events(deltas, accepted), scope, send)
            return
        tally = Tally()
        wholes = await gather(deltas, tally)
        usage = accepted.usage(tally)
        whole = whole_answer(accepted.head, accepted.form, wholes, usage, accepted.more)
        await whole(scope, receive, send)


async def _events(
    deltas: AsyncGenerator[Delta, None], accepted: Accepted
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: each choice's first with its first token, then wherever there is news."""
    writer = ChunkWriter(accepted.head, accepted.form, accepted.more)
    tally = Tally()
    async for delta in deltas:
        tally.add(delta)
        is_news = delta.pieces or delta.scores or delta.finish_reason
        if is_news or not writer.has_begun(delta.index):
            yield writer.delta(delta, _usage_of_chunk(accepted, tally))
    if accepted.streaming.include_usage:
        yield writer.usage(accepted.usage(tally))
    yield DONE


def _usage_of_chunk(accepted: Accepted, tally: Tally) -> str:
    if accepted.streaming.continuous_usage_stats:
        return usage_member(accepted.usage(tally))
    return usage_member(None) if accepted.streaming.include_usage else ""
