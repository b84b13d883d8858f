"""From a checked request to its answer: sequences made, run, and written, streamed or whole.

What `chat.py` and `completions.py` have in common after they have read their own request. Knows
neither messages nor media.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from contextlib import aclosing
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from litevl.api.auth import caller_of
from litevl.api.bodies import let_go_of_body
from litevl.api.choices import Choice, Delta, Reader, read_deltas
from litevl.api.detokenizer import Detokenizer
from litevl.api.exchange import send_events
from litevl.api.fields import JSONObject
from litevl.api.ports import Backend
from litevl.api.protocol import Streaming
from litevl.api.records import record_of
from litevl.api.responses import DONE, AnswerHead, AnswerWriter, ChunkWriter, Form
from litevl.api.sampling import Sampling
from litevl.api.service import Service
from litevl.errors import InvalidValueError
from litevl.sequence import FinishReason, Grammar, Prompt, Sequence, TokenMask

PIECE = 256 * 2**10  # bytes of a whole answer that are written at once


def new_head(model: str, form: Form, prompts: Many[Prompt], more: JSONObject) -> AnswerHead:
    """With a new id and the time."""
    name, now = f"{form.id_prefix}-{uuid.uuid4().hex}", int(time.time())
    return AnswerHead(id=name, created=now, model=model, form=form, prompts=prompts, more=more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The answer to an accepted request, as an ASGI application.

    All that is kept of the request while the model answers: not its body, which can be large.
    """

    service: Service
    backend: Backend
    head: AnswerHead
    sampling: Sampling
    streaming: Streaming
    reader: Callable[[], Reader]  # a new one for each answer
    grammar: Grammar | None
    grammar_param: str  # the fields that errors about these name
    prompt_param: str
    calls_end_as: FinishReason = FinishReason.TOOL_CALLS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate, and send what comes in the way that the request asks for."""
        sequences = await self._sequences(caller_of(scope))
        record = record_of(scope)
        record.accept(self.head.model, self.head.prompts, sequences)
        let_go_of_body(scope)
        choices = [self._choice(*each) for each in enumerate(sequences)]
        generation = self.service.generation(self.backend, sequences)
        async with aclosing(read_deltas(generation, choices, record.note)) as deltas:
            if self.streaming.stream:
                await send_events(self._events(deltas), scope, send)
            else:
                await self._send_whole(deltas, send)

    async def _sequences(self, caller: bytes) -> list[Sequence]:
        """A sequence for each answer to each prompt, in order; raises what cannot be sampled so."""
        wanted = [
            (prompt, params)
            for prompt in self.head.prompts
            for params in self.sampling.params(
                self.backend.card, len(prompt), self.service.draw_seed(), self.prompt_param
            )
        ]
        if len(wanted) > self.service.max_sequences:  # to wait would be in vain
            raise InvalidValueError(
                f"The request asks for {len(wanted)} answers, and this server works on "
                f"{self.service.max_sequences} at once, those that wait included: ask for fewer.",
                param="n" if len(self.head.prompts) == 1 else self.prompt_param,
            )
        return [
            Sequence(
                request_id=f"{self.head.id}-{index}",
                prompt=prompt,
                params=params,
                scope=caller,
                mask=await self._mask(prompt),
            )
            for index, (prompt, params) in enumerate(wanted)
        ]

    async def _mask(self, prompt: Prompt) -> TokenMask | None:
        if self.grammar is None:
            return None
        return await self.service.in_worker(
            self.backend.grammars.compile,
            self.grammar,
            after_thinking=prompt.is_thinking,
            param=self.grammar_param,
        )

    def _choice(self, index: int, sequence: Sequence) -> Choice:
        preprocessor = self.backend.preprocessor
        return Choice(
            index,
            sequence.request_id,
            detokenizer=Detokenizer(preprocessor.token_bytes, self.sampling.stop),
            reader=self.reader(),
            token_name=preprocessor.token_name,
            calls_end_as=self.calls_end_as,
        )

    async def _events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
        writer = ChunkWriter(self.head, self.streaming)
        async for delta in deltas:
            if chunk := writer.add(delta):
                yield chunk
        if self.streaming.include_usage:
            yield writer.usage()
        yield DONE

    async def _send_whole(self, deltas: AsyncGenerator[Delta, None], send: Send) -> None:
        """One answer, of the size that it says; nothing is sent before it is whole."""
        writer = AnswerWriter(self.head)
        async for delta in deltas:
            writer.add(delta)
        parts = writer.finish()
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
