"""`POST /v1/completions`: text goes on, without a chat template. `app.py` routes to it."""

from starlette.types import Scope

from litevl.api.answering import Generated, new_head
from litevl.api.choices import PlainReader
from litevl.api.exchange import find_model, parse_body
from litevl.api.ports import Backend
from litevl.api.protocol import CompletionRequest
from litevl.api.responses import TextForm
from litevl.api.service import Service
from litevl.sequence import Prompt


async def accept_completion(
    service: Service, backend: Backend, body: bytes, scope: Scope
) -> Generated:
    """Check the request and build its prompts."""
    request = await parse_body(body, scope, CompletionRequest.parse)
    model = find_model(backend.card, request.model)
    prompts, echoes = await service.in_worker(_prompts_and_echoes, backend, request)
    return Generated(
        service=service,
        backend=backend,
        head=new_head(model, TextForm(echoes), prompts, {}),
        sampling=request.sampling,
        streaming=request.streaming,
        reader=PlainReader,
        grammar=request.document,
        grammar_param=request.document_param,
        prompt_param="prompt",
    )


def _prompts_and_echoes(
    backend: Backend, request: CompletionRequest
) -> tuple[list[Prompt], dict[int, str]]:
    """The prompts, and once it is known that they fit what stands before each choice."""
    text_prompt, decode = backend.preprocessor.text_prompt, backend.preprocessor.decode
    prompts = [text_prompt(each) for each in request.prompts]
    if not request.echo:
        return prompts, {}
    texts = [each if isinstance(each, str) else decode(each) for each in request.prompts]
    n = request.sampling.n
    return prompts, {index: texts[index // n] for index in range(n * len(texts))}
