"""Token counts and ids without an answer: `/chat/completions/input_tokens`, `/tokenize`,
`/detokenize`. `app.py` routes to them; shapes are llama.cpp's and vLLM's.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from litevl.api.auth import caller_of
from litevl.api.exchange import find_model, parse_body
from litevl.api.fitting import fit_for
from litevl.api.ports import Backend
from litevl.api.protocol import ChatCompletionRequest, DetokenizeRequest, TokenizeRequest
from litevl.api.receipts import receipts
from litevl.api.service import Service
from litevl.sequence import PlannedMedia, PromptSize


class TokenEndpoints:
    """Handlers, each a coroutine function of a request."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def input_tokens(self, request: Request) -> Response:
        """What a chat request would cost: nothing is decoded, and the model is not asked."""
        backend = self._service.ready_backend()
        asked = await parse_body(await request.body(), request.scope, ChatCompletionRequest.parse)
        find_model(backend.card, asked.model)
        size, media = await self._measure(backend, asked, request.scope)
        return JSONResponse(
            {
                "object": "response.input_tokens",
                "input_tokens": len(size.token_ids),
                "messages": list(size.message_tokens),
                "media": receipts(media, size.media),
            }
        )

    async def tokenize(self, request: Request) -> Response:
        """The ids of a text, or of a conversation as the model would see it."""
        backend = self._service.ready_backend()
        asked = await parse_body(await request.body(), request.scope, TokenizeRequest.parse)
        find_model(backend.card, asked.model)
        if asked.chat:
            ids = (await self._measure(backend, asked.chat, request.scope))[0].token_ids
        else:
            encode = partial(backend.preprocessor.text_prompt, asked.prompt or "")
            ids = (await self._service.in_worker(encode)).token_ids
        names = partial(_names, backend, ids) if asked.return_token_strs else lambda: None
        return JSONResponse(
            {
                "count": len(ids),
                "max_model_len": backend.card.max_model_len,
                "tokens": ids.tolist(),
                "token_strs": await self._service.in_worker(names),
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        backend = self._service.ready_backend()
        asked = await parse_body(await request.body(), request.scope, DetokenizeRequest.parse)
        find_model(backend.card, asked.model)
        decode = partial(backend.preprocessor.decode, asked.tokens)
        return JSONResponse({"prompt": await self._service.in_worker(decode)})

    async def _measure(
        self, backend: Backend, asked: ChatCompletionRequest, scope: Scope
    ) -> tuple[PromptSize, list[PlannedMedia]]:
        fit = fit_for(self._service, backend, asked)
        media = await backend.media.measure(asked.media, caller_of(scope), fit)
        measure = partial(backend.preprocessor.measure, asked.conversation, media)
        return await self._service.in_worker(measure), media


def _names(backend: Backend, token_ids: NDArray[np.int64]) -> list[str]:
    name = backend.preprocessor.token_name
    return [name(token).decode(errors="replace") for token in token_ids.tolist()]
