"""The life of one chat completion, streamed or whole: `app.py` routes to `accept_chat`.

Body -> request -> media -> prompt -> sequences -> tokens -> text -> answer. Whatever happens on the
way, an error or a client that hangs up closes the generators behind it: that frees the sequences.
"""

from functools import partial

from starlette.types import Scope

from litevl.api.answer import AnswerReader
from litevl.api.answering import Generated, new_head
from litevl.api.auth import caller_of
from litevl.api.exchange import find_model, parse_body
from litevl.api.fields import JSONObject
from litevl.api.ports import Backend
from litevl.api.protocol import ChatCompletionRequest
from litevl.api.records import record_of
from litevl.api.responses import ChatForm, receipts
from litevl.api.service import Service
from litevl.media.loader import Fit
from litevl.sequence import FinishReason, PlannedMedia, ToolGrammar

RESERVED = 8  # this part of the context is left for an answer without a limit of its own


async def accept_chat(
    service: Service,
    backend: Backend,
    body: bytes,
    scope: Scope,
    *,
    reasoning_in_content: bool = False,
) -> Generated:
    """Check the request, load its media and build its prompt."""
    request = await parse_body(body, scope, ChatCompletionRequest.parse)
    model = find_model(backend.card, request.model)
    fit = service.admission.holding(scope, fit_for(service, backend, request))
    media = await backend.media.load(request.media, caller_of(scope), fit)
    record_of(scope).load(media)
    prompt = await service.in_worker(backend.preprocessor.prepare, request.conversation, media)
    tools, tool_format = request.conversation.tools, backend.preprocessor.tool_format
    grammar = request.grammar(tool_format)
    more: JSONObject = {}
    if request.wants_receipt:
        more = {"litevl": {"media": receipts(media, prompt.media)}}
    return Generated(
        service=service,
        backend=backend,
        head=new_head(model, ChatForm(), (prompt,), more),
        sampling=request.sampling,
        streaming=request.streaming,
        reader=partial(
            AnswerReader,
            is_thinking=prompt.is_thinking,
            tools=tools,
            tool_format=tool_format if tools else None,
            max_calls=None if request.parallel_tool_calls else 1,
            only_calls=isinstance(grammar, ToolGrammar),
            reasoning_in_content=reasoning_in_content,
        ),
        grammar=grammar,
        grammar_param=request.grammar_param,
        prompt_param="messages",
        # A tool that had to be called by its name is no reason of its own, as OpenAI has it.
        calls_end_as=FinishReason.STOP if request.tool_choice.name else FinishReason.TOOL_CALLS,
    )


def fit_for(service: Service, backend: Backend, request: ChatCompletionRequest) -> Fit | None:
    """Shrinks a request's media to the room left beside the answer; None if it did not ask."""
    if not request.fits_media:
        return None
    limit = backend.card.max_model_len
    reserve = min(request.sampling.max_tokens or limit // RESERVED, limit // 2)

    async def fitted(planned: list[PlannedMedia]) -> list[PlannedMedia]:
        fit = backend.preprocessor.fit
        return await service.in_worker(fit, request.conversation, planned, reserve)

    return fitted
