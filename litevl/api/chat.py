"""The life of one chat completion, streamed or whole: `app.py` routes to `ChatCompletions`.

Body -> request -> media -> prompt -> sequences -> tokens -> text -> answer. Whatever happens on the
way, an error or a client that hangs up closes the generators behind it: that frees the sequences.
"""

from functools import partial

from starlette.types import Receive, Scope, Send

from litevl.api.answer import AnswerReader
from litevl.api.answering import Accepted, answer, new_head, new_sequences
from litevl.api.auth import caller_of
from litevl.api.exchange import find_model, parse_body
from litevl.api.fitting import fit_for
from litevl.api.ports import Backend
from litevl.api.protocol import ChatCompletionRequest
from litevl.api.receipts import receipts
from litevl.api.records import record_of
from litevl.api.responses import ChatForm
from litevl.api.service import Service
from litevl.sequence import FinishReason, Prompt


class ChatCompletions:
    """`POST /v1/chat/completions` as an ASGI application."""

    def __init__(self, service: Service, *, reasoning_in_content: bool = False) -> None:
        self._service = service
        self._reasoning_in_content = reasoning_in_content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(self._service, self._accept, scope, receive, send)

    async def _accept(self, backend: Backend, body: bytes, scope: Scope) -> Accepted:
        """Check the request, load its media and build its prompt."""
        request = await parse_body(body, scope, ChatCompletionRequest.parse)
        head = new_head("chatcmpl", find_model(backend.card, request.model))
        fit = self._service.admission.holding(scope, fit_for(self._service, backend, request))
        media = await backend.media.load(request.media, caller_of(scope), fit)
        record_of(scope).load(media)
        prepare = partial(backend.preprocessor.prepare, request.conversation, media)
        prompt = await self._service.in_worker(prepare)
        sequences = await new_sequences(
            self._service,
            backend,
            [prompt],
            request.sampling,
            name=head.id,
            scope=scope,
            grammar=request.grammar(backend.preprocessor.tool_format),
            grammar_param=request.grammar_param,
            prompt_param="messages",
        )
        return Accepted(
            head=head,
            form=ChatForm(),
            prompts=(prompt,),
            sequences=sequences,
            readers=[self._reader(request, prompt, backend) for _ in sequences],
            streaming=request.streaming,
            stop=request.sampling.stop,
            calls_end_as=_calls_end_as(request),
            more={"litevl": {"media": receipts(media, prompt.media)}}
            if request.wants_receipt
            else {},
        )

    def _reader(
        self, request: ChatCompletionRequest, prompt: Prompt, backend: Backend
    ) -> AnswerReader:
        tools = request.conversation.tools
        return AnswerReader(
            is_thinking=prompt.is_thinking,
            tools=tools,
            tool_format=backend.preprocessor.tool_format if tools else None,
            max_calls=None if request.parallel_tool_calls else 1,
            reasoning_in_content=self._reasoning_in_content,
        )


def _calls_end_as(request: ChatCompletionRequest) -> FinishReason:
    """A tool that had to be called by its name is no reason of its own, as OpenAI has it."""
    return FinishReason.STOP if request.tool_choice.name else FinishReason.TOOL_CALLS
