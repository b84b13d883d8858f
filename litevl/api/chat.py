"""The life of one chat completion, streamed or whole: `app.py` routes to `ChatCompletions`.

Body -> request -> media -> prompt -> sequence -> tokens -> text -> answer. Whatever happens on the
way, an error or a client that hangs up closes the generators behind it: that frees the sequence.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from litevl.api.auth import caller_of
from litevl.api.detokenizer import Detokenizer
from litevl.api.json_body import parse_json
from litevl.api.middleware import add_answer_header, request_id, to_litevl_error
from litevl.api.ports import Backend
from litevl.api.protocol import ChatCompletionRequest, StreamOptions
from litevl.api.responses import (
    DONE,
    EVENT_STREAM_HEADERS,
    AnswerHead,
    ChunkWriter,
    Usage,
    completion,
    error_object,
    event,
    usage_member,
)
from litevl.api.service import Service
from litevl.errors import ModelNotFoundError
from litevl.sequence import Conversation, FinishReason, ModelCard, Prompt, Sequence, StepOutput

LARGE_BODY = 256 * 2**10  # bytes

T = TypeVar("T")


def find_model(card: ModelCard, name: str | None) -> str:
    """The name to answer under: the one asked for, or the first. Else `ModelNotFoundError`."""
    if name is None:
        return card.names[0]
    if name not in card.names:
        names = ", ".join(card.names)
        raise ModelNotFoundError(f"No such model; this server serves {names}.", param="model")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What is kept of a request while it is answered: not its body, which can be large."""

    head: AnswerHead
    sequence: Sequence
    stream: bool
    stream_options: StreamOptions
    stop: tuple[str, ...]


class ChatCompletions:
    """`POST /v1/chat/completions` as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        backend = self._service.ready_backend()
        accepting = self._accept(backend, await Request(scope, receive).body(), scope)
        await _until_disconnect(receive, self._answer(backend, accepting, scope, receive, send))

    async def _accept(self, backend: Backend, body: bytes, scope: Scope) -> Accepted:
        """Check the request, load its media and build its prompt."""
        parsed = await _off_the_loop(len(body), partial(parse_json, body))
        if parsed.slips:
            add_answer_header(scope, "x-litevl-json-repaired", ", ".join(parsed.slips))
        parse = partial(ChatCompletionRequest.parse, parsed.value)
        request = await _off_the_loop(len(body), parse)
        model = find_model(backend.card, request.model)
        media = await backend.media.load(request.media, caller_of(scope))
        conversation = Conversation(messages=request.messages)
        prepare = partial(backend.preprocessor.prepare, conversation, media)
        prompt = await self._service.in_worker(prepare)
        params = request.sampling_params(backend.card, len(prompt), self._service.draw_seed())
        name = f"chatcmpl-{uuid.uuid4().hex}"
        return Accepted(
            head=AnswerHead(id=name, created=int(time.time()), model=model),
            sequence=Sequence(
                request_id=name, prompt=prompt, params=params, scope=caller_of(scope)
            ),
            stream=request.stream,
            stream_options=request.stream_options,
            stop=request.stop,
        )

    async def _answer(
        self,
        backend: Backend,
        accepting: Coroutine[Any, Any, Accepted],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        accepted = await accepting
        prompt = accepted.sequence.prompt
        detokenizer = Detokenizer(backend.preprocessor.token_bytes, accepted.stop)
        generated = self._service.generate(backend, accepted.sequence)
        async with aclosing(read_deltas(generated, detokenizer)) as deltas:
            if accepted.stream:
                events = _events(deltas, accepted.head, prompt, accepted.stream_options)
                await _send_events(events, request_id(scope), send)
            else:
                whole = await _join(deltas)
                usage = _usage(prompt, whole)
                answer = completion(accepted.head, whole.text, whole.finish_reason, usage)
                await answer(scope, receive, send)


async def _off_the_loop(size: int, parse: Callable[[], T]) -> T:
    """Parse in a thread what is large: it would keep the loop from other clients."""
    return await asyncio.to_thread(parse) if size > LARGE_BODY else parse()


async def _until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, and cancel it as soon as the client hangs up."""
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.wait((worker, watcher))
    if not worker.cancelled():
        worker.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# Tokens to text --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that can be sent now, and how many tokens there have been so far."""

    text: str
    completion_tokens: int
    cached_tokens: int
    finish_reason: FinishReason | None = None


async def read_deltas(
    generated: AsyncGenerator[list[StepOutput], None], detokenizer: Detokenizer
) -> AsyncGenerator[Delta, None]:
    """The answer as it comes; the last delta, and only that, has a finish reason."""
    num_tokens = 0
    async with aclosing(generated):
        async for outputs in generated:
            delta = _read(outputs, detokenizer, num_tokens)
            if delta.finish_reason:
                break
            num_tokens = delta.completion_tokens
            yield delta
    yield delta  # now that the engine has let go, however slow the client is


def _read(outputs: list[StepOutput], detokenizer: Detokenizer, num_tokens: int) -> Delta:
    """What some steps gave, up to the stop string or the end that is among them."""
    text = ""
    reason = None
    for output in outputs:
        if output.token_id is not None:
            num_tokens += 1
            text += detokenizer.push(output.token_id)
        reason = FinishReason.STOP if detokenizer.stopped else output.finish_reason
        if reason:
            text += detokenizer.flush()
            break
    return Delta(text, num_tokens, outputs[-1].num_cached_tokens, reason)


async def _join(deltas: AsyncGenerator[Delta, None]) -> Delta:
    """The whole answer as one delta."""
    parts = [delta async for delta in deltas]
    last = parts[-1]
    return replace(last, text="".join(part.text for part in parts))


def _usage(prompt: Prompt, delta: Delta) -> Usage:
    """What has been used when `delta` came."""
    return Usage.of(prompt, delta.completion_tokens, delta.cached_tokens)


# Streaming -------------------------------------------------------------------------------------


async def _events(
    deltas: AsyncGenerator[Delta, None], head: AnswerHead, prompt: Prompt, options: StreamOptions
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: the first with the first token, then wherever there is text."""
    writer = ChunkWriter(head)
    is_first = True
    async for delta in deltas:
        if is_first or delta.text or delta.finish_reason:
            usage = _usage_of_chunk(options, prompt, delta)
            yield writer.delta(delta.text, delta.finish_reason, usage, is_first=is_first)
            is_first = False
    if options.include_usage:
        yield writer.usage(_usage(prompt, delta))
    yield DONE


def _usage_of_chunk(options: StreamOptions, prompt: Prompt, delta: Delta) -> str:
    if options.continuous_usage_stats:
        return usage_member(_usage(prompt, delta))
    return usage_member(None) if options.include_usage else ""


async def _send_events(events: AsyncGenerator[bytes, None], request: str, send: Send) -> None:
    """Answer 200 once there is a first event; what fails before that still has its own status."""
    async with aclosing(events):
        body = await anext(events)
        await send(
            {"type": "http.response.start", "status": 200, "headers": list(EVENT_STREAM_HEADERS)}
        )
        try:
            await send({"type": "http.response.body", "body": body, "more_body": True})
            async for body in events:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except Exception as error:  # noqa: BLE001 - the status is out: the stream itself must tell
            body = event(error_object(to_litevl_error(error, request)))
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
