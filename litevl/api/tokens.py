"""Token counts and ids without an answer: `/chat/completions/input_tokens`, `/tokenize`,
`/detokenize`. `app.py` routes to them; shapes are llama.cpp's and vLLM's.
"""

from starlette.responses import JSONResponse
from starlette.types import Scope

from litevl.api.auth import caller_of
from litevl.api.chat import fit_for
from litevl.api.exchange import find_model, parse_body
from litevl.api.fields import refuse
from litevl.api.ports import Backend
from litevl.api.protocol import ChatCompletionRequest, DetokenizeRequest, TokenizeRequest
from litevl.api.responses import receipts
from litevl.api.service import Service
from litevl.sequence import PlannedMedia, PromptSize


async def input_tokens(
    service: Service, backend: Backend, body: bytes, scope: Scope
) -> JSONResponse:
    """What a chat request would cost: nothing is decoded, and the model is not asked."""
    asked = await parse_body(body, scope, ChatCompletionRequest.parse)
    find_model(backend.card, asked.model)
    size, media = await _measure(service, backend, asked, scope)
    return JSONResponse(
        {
            "object": "response.input_tokens",
            "input_tokens": len(size.token_ids),
            "messages": list(size.message_tokens),
            "media": receipts(media, size.media),
        }
    )


async def tokenize(service: Service, backend: Backend, body: bytes, scope: Scope) -> JSONResponse:
    """The ids of a text, or of a conversation as the model would see it."""
    asked = await parse_body(body, scope, TokenizeRequest.parse)
    find_model(backend.card, asked.model)
    tokens: list[int] = []
    if asked.chat:
        size, _ = await _measure(service, backend, asked.chat, scope)
        tokens = size.token_ids.tolist()
    elif asked.prompt:  # an empty text is no prompt, and has no tokens
        prompt = await service.in_worker(backend.preprocessor.text_prompt, asked.prompt)
        tokens = prompt.token_ids.tolist()
    names = await service.in_worker(_names, backend, tokens) if asked.return_token_strs else None
    return JSONResponse(
        {
            "count": len(tokens),
            "max_model_len": backend.card.max_model_len,
            "tokens": tokens,
            "token_strs": names,
        }
    )


async def detokenize(service: Service, backend: Backend, body: bytes, scope: Scope) -> JSONResponse:
    """The text of token ids."""
    asked = await parse_body(body, scope, DetokenizeRequest.parse)
    find_model(backend.card, asked.model)
    if max(asked.tokens, default=0) >= backend.card.vocab_size:
        refuse("tokens", f"made of token ids below {backend.card.vocab_size}")
    text = await service.in_worker(backend.preprocessor.decode, asked.tokens)
    return JSONResponse({"prompt": text})


async def _measure(
    service: Service, backend: Backend, asked: ChatCompletionRequest, scope: Scope
) -> tuple[PromptSize, list[PlannedMedia]]:
    fit = fit_for(service, backend, asked)
    media = await backend.media.measure(asked.media, caller_of(scope), fit)
    size = await service.in_worker(backend.preprocessor.measure, asked.conversation, media)
    return size, media


def _names(backend: Backend, tokens: list[int]) -> list[str]:
    name = backend.preprocessor.token_name
    return [name(token).decode(errors="replace") for token in tokens]
