"""Token counts and ids without an answer: `/chat/completions/input_tokens`, `/tokenize`,
`/detokenize`. `app.py` routes to them; shapes are llama.cpp's and vLLM's.
"""

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from litevl.api.auth import caller_of
from litevl.api.exchange import find_model, parse_body, read_body, until_disconnect
from litevl.api.fields import JSONObject, refuse
from litevl.api.fitting import fit_for
from litevl.api.ports import Backend
from litevl.api.protocol import ChatCompletionRequest, DetokenizeRequest, TokenizeRequest
from litevl.api.receipts import receipts
from litevl.api.service import Service
from litevl.sequence import PlannedMedia, PromptSize

Work = Callable[[Service, Backend, bytes, Scope], Awaitable[JSONObject]]


class Counting:
    """An endpoint that generates nothing, as an ASGI application; `work` makes its answers."""

    def __init__(self, service: Service, work: Work) -> None:
        self._service = service
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        backend = self._service.ready_backend()
        body = await read_body(scope, receive)

        async def answer() -> None:
            told = JSONResponse(await self._work(self._service, backend, body, scope))
            await told(scope, receive, send)

        with self._service.admission.enter(scope):
            await until_disconnect(receive, answer())


async def input_tokens(service: Service, backend: Backend, body: bytes, scope: Scope) -> JSONObject:
    """What a chat request would cost: nothing is decoded, and the model is not asked."""
    asked = await parse_body(body, scope, ChatCompletionRequest.parse)
    find_model(backend.card, asked.model)
    size, media = await _measure(service, backend, asked, scope)
    return {
        "object": "response.input_tokens",
        "input_tokens": len(size.token_ids),
        "messages": list(size.message_tokens),
        "media": receipts(media, size.media),
    }


async def tokenize(service: Service, backend: Backend, body: bytes, scope: Scope) -> JSONObject:
    """The ids of a text, or of a conversation as the model would see it."""
    asked = await parse_body(body, scope, TokenizeRequest.parse)
    find_model(backend.card, asked.model)
    tokens: list[int] = []
    if asked.chat:
        size, _ = await _measure(service, backend, asked.chat, scope)
        tokens = size.token_ids.tolist()
    elif asked.prompt:  # an empty text is no prompt, and has no tokens
        encode = partial(backend.preprocessor.text_prompt, asked.prompt)
        tokens = (await service.in_worker(encode)).token_ids.tolist()
    names = partial(_names, backend, tokens) if asked.return_token_strs else lambda: None
    return {
        "count": len(tokens),
        "max_model_len": backend.card.max_model_len,
        "tokens": tokens,
        "token_strs": await service.in_worker(names),
    }


async def detokenize(service: Service, backend: Backend, body: bytes, scope: Scope) -> JSONObject:
    """The text of token ids."""
    asked = await parse_body(body, scope, DetokenizeRequest.parse)
    find_model(backend.card, asked.model)
    if max(asked.tokens, default=0) >= backend.card.vocab_size:
        refuse("tokens", f"made of token ids below {backend.card.vocab_size}")
    decode = partial(backend.preprocessor.decode, asked.tokens)
    return {"prompt": await service.in_worker(decode)}


async def _measure(
    service: Service, backend: Backend, asked: ChatCompletionRequest, scope: Scope
) -> tuple[PromptSize, list[PlannedMedia]]:
    fit = fit_for(service, backend, asked)
    media = await backend.media.measure(asked.media, caller_of(scope), fit)
    measure = partial(backend.preprocessor.measure, asked.conversation, media)
    return await service.in_worker(measure), media


def _names(backend: Backend, tokens: list[int]) -> list[str]:
    name = backend.preprocessor.token_name
    return [name(token).decode(errors="replace") for token in tokens]
