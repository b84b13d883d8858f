"""Token counts and ids without an answer: `/chat/completions/input_tokens`, `/tokenize`,
`/detokenize`. `app.py` routes to them; shapes are llama.cpp's and vLLM's.
"""

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from litevl.api.auth import caller_of
from litevl.api.exchange import find_model, parse_body, read_body
from litevl.api.fields import JSONObject, refuse
from litevl.api.fitting import fit_for
from litevl.api.ports import Backend
from litevl.api.protocol import ChatCompletionRequest, DetokenizeRequest, TokenizeRequest
from litevl.api.receipts import receipts
from litevl.api.service import Service
from litevl.sequence import PlannedMedia, PromptSize

Work = Callable[[Backend, bytes, Scope], Awaitable[JSONObject]]


class TokenEndpoints:
    """Handlers, each a coroutine function of a request."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def input_tokens(self, request: Request) -> Response:
        """What a chat request would cost: nothing is decoded, and the model is not asked."""
        return await self._answer(request, self._input_tokens)

    async def tokenize(self, request: Request) -> Response:
        """The ids of a text, or of a conversation as the model would see it."""
        return await self._answer(request, self._tokenize)

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        return await self._answer(request, self._detokenize)

    async def _answer(self, request: Request, work: Work) -> Response:
        backend = self._service.ready_backend()
        body = await read_body(request.scope, request.receive)
        with self._service.admission.enter(request.scope):
            return JSONResponse(await work(backend, body, request.scope))

    async def _input_tokens(self, backend: Backend, body: bytes, scope: Scope) -> JSONObject:
        asked = await parse_body(body, scope, ChatCompletionRequest.parse)
        find_model(backend.card, asked.model)
        size, media = await self._measure(backend, asked, scope)
        return {
            "object": "response.input_tokens",
            "input_tokens": len(size.token_ids),
            "messages": list(size.message_tokens),
            "media": receipts(media, size.media),
        }

    async def _tokenize(self, backend: Backend, body: bytes, scope: Scope) -> JSONObject:
        asked = await parse_body(body, scope, TokenizeRequest.parse)
        find_model(backend.card, asked.model)
        tokens: list[int] = []
        if asked.chat:
            size, _ = await self._measure(backend, asked.chat, scope)
            tokens = size.token_ids.tolist()
        elif asked.prompt:  # an empty text is no prompt, and has no tokens
            encode = partial(backend.preprocessor.text_prompt, asked.prompt)
            tokens = (await self._service.in_worker(encode)).token_ids.tolist()
        names = partial(_names, backend, tokens) if asked.return_token_strs else lambda: None
        return {
            "count": len(tokens),
            "max_model_len": backend.card.max_model_len,
            "tokens": tokens,
            "token_strs": await self._service.in_worker(names),
        }

    async def _detokenize(self, backend: Backend, body: bytes, scope: Scope) -> JSONObject:
        asked = await parse_body(body, scope, DetokenizeRequest.parse)
        find_model(backend.card, asked.model)
        if max(asked.tokens, default=0) >= backend.card.vocab_size:
            refuse("tokens", f"made of token ids below {backend.card.vocab_size}")
        decode = partial(backend.preprocessor.decode, asked.tokens)
        return {"prompt": await self._service.in_worker(decode)}

    async def _measure(
        self, backend: Backend, asked: ChatCompletionRequest, scope: Scope
    ) -> tuple[PromptSize, list[PlannedMedia]]:
        fit = fit_for(self._service, backend, asked)
        media = await backend.media.measure(asked.media, caller_of(scope), fit)
        measure = partial(backend.preprocessor.measure, asked.conversation, media)
        return await self._service.in_worker(measure), media


def _names(backend: Backend, tokens: list[int]) -> list[str]:
    name = backend.preprocessor.token_name
    return [name(token).decode(errors="replace") for token in tokens]
