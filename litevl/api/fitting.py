"""`media_fit`: pictures and clips made to fit the context. Used by `chat.py` and `tokens.py`."""

from functools import partial

from litevl.api.ports import Backend
from litevl.api.protocol import ChatCompletionRequest
from litevl.api.service import Service
from litevl.media.loader import Fit
from litevl.sequence import PlannedMedia

RESERVED = 8  # this part of the context is left for an answer without a limit of its own


def fit_for(service: Service, backend: Backend, request: ChatCompletionRequest) -> Fit | None:
    """Shrinks a request's media to the room left beside the answer; None if it did not ask."""
    if not request.fits_media:
        return None
    limit = backend.card.max_model_len
    reserve = min(request.sampling.max_tokens or limit // RESERVED, limit // 2)
    fit = partial(backend.preprocessor.fit, request.conversation, reserve=reserve)

    async def fitted(planned: list[PlannedMedia]) -> list[PlannedMedia]:
        return await service.in_worker(partial(fit, planned))

    return fitted
