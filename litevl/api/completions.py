"""`POST /v1/completions`: text goes on, without a chat template. `app.py` routes to it."""

from functools import partial

from starlette.types import Receive, Scope, Send

from litevl.api.answering import Accepted, answer, new_head, new_sequences
from litevl.api.choices import PlainReader
from litevl.api.exchange import find_model, parse_body
from litevl.api.ports import Backend
from litevl.api.protocol import CompletionRequest
from litevl.api.responses import TextForm
from litevl.api.service import Service
from litevl.sequence import Prompt


class Completions:
    """Text completions as an ASGI application."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(self._service, self._accept, scope, receive, send)

    async def _accept(self, backend: Backend, body: bytes, scope: Scope) -> Accepted:
        request = await parse_body(body, scope, CompletionRequest.parse)
        head = new_head("cmpl", find_model(backend.card, request.model))
        prepare = partial(_prompts, backend, request)
        prompts = await self._service.in_worker(prepare)
        sequences = await new_sequences(
            self._service,
            backend,
            prompts,
            request.sampling,
            name=head.id,
            scope=scope,
            grammar=request.document,
            grammar_param=request.document_param,
            prompt_param="prompt",
        )
        return Accepted(
            head=head,
            form=TextForm(_echoes(backend, request, prompts)),
            prompts=prompts,
            sequences=sequences,
            readers=[PlainReader() for _ in sequences],
            streaming=request.streaming,
            stop=request.sampling.stop,
        )


def _prompts(backend: Backend, request: CompletionRequest) -> list[Prompt]:
    return [backend.preprocessor.text_prompt(each) for each in request.prompts]


def _echoes(backend: Backend, request: CompletionRequest, prompts: list[Prompt]) -> dict[int, str]:
    """What stands before each choice."""
    if not request.echo:
        return {}
    texts = [
        each if isinstance(each, str) else backend.preprocessor.decode(each)
        for each in request.prompts
    ]
    n = request.sampling.n
    return {index: texts[index // n] for index in range(n * len(texts))}
