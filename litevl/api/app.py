"""The ASGI application: routes, the layers around them, and the small endpoints.

`serving.py` hands `create_app` to uvicorn. Knows the service, not what stands behind it.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from litevl import __version__
from litevl.api.auth import OPEN_PATHS, Authentication, Keys
from litevl.api.bodies import BodyLimit
from litevl.api.chat import accept_chat
from litevl.api.completions import accept_completion
from litevl.api.exchange import Endpoint, find_model
from litevl.api.middleware import AnswerHeaders, Cors, Errors, Recording, normalised
from litevl.api.openapi import openapi_document
from litevl.api.overview import page_routes
from litevl.api.records import Records
from litevl.api.responses import model_list, model_object
from litevl.api.service import Service
from litevl.api.status import StatusEndpoints
from litevl.api.tokens import detokenize, input_tokens, tokenize
from litevl.config import Config
from litevl.health import Health
from litevl.media.budgets import BytesInFlight


def create_app(
    config: Config, service: Service, budget: BytesInFlight, records: Records
) -> ASGIApp:
    """The whole HTTP side. `config.api_key` holds every key that may call; none: everybody may."""

    @contextlib.asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        service.bind()
        yield
        await service.stop()

    pages = [] if config.no_page else page_routes()
    table = [*routes(config, service, records), *pages]
    router = Router(table, redirect_slashes=False, lifespan=lifespan)
    recorded = partial(Recording, records=records, routes=table)
    without_key = open_paths(config).union(page.path for page in pages)
    http = _wrap(router, config, budget, without_key, recorded)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's router raises its 404 and 405, instead of answering, where it sees an app.
        scope = {**scope, "app": app}
        if scope["type"] == "http":
            await http(normalised(scope), receive, send)
        else:
            await router(scope, receive, send)

    return app


def open_paths(config: Config) -> frozenset[str]:
    """What there is without a key, but for the page's own files."""
    closed = {"/metrics"} if config.metrics_needs_key else set()
    return OPEN_PATHS - closed - ({"/"} if config.no_page else set())


def _wrap(
    app: ASGIApp,
    config: Config,
    budget: BytesInFlight,
    open_paths: frozenset[str],
    recorded: Callable[[ASGIApp], ASGIApp],
) -> ASGIApp:
    """The layers, innermost first."""
    app = BodyLimit(app, config.max_body_size, budget)
    # Who asks for no key though it is reachable from elsewhere, has said so by --no-api-key.
    app = Authentication(
        app,
        Keys(config.api_key),
        open_paths,
        only_this_machine=not (config.api_key or config.no_api_key),
    )
    app = recorded(Errors(app))
    if config.api_key:  # without a key, a page of any origin could otherwise use the model
        app = Cors(app)
    return AnswerHeaders(app)


def routes(config: Config, service: Service, records: Records) -> list[Route]:
    """Every address, as the normaliser spells it: `/v1/models` is `/models`."""

    async def health(request: Request) -> Response:
        state = service.health()
        return JSONResponse({"status": state}, 200 if state is Health.READY else 503)

    async def live(request: Request) -> Response:
        state = service.health()
        is_alive = state not in (Health.STALLED, Health.DEAD)
        return JSONResponse({"status": state}, 200 if is_alive else 503)

    async def version(request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def openapi(request: Request) -> Response:
        return Response(document, media_type="application/json")

    async def models(request: Request) -> Response:
        return JSONResponse(model_list(service.ready_backend().card))

    async def model(request: Request) -> Response:
        card = service.ready_backend().card
        return JSONResponse(model_object(card, find_model(card, request.path_params["name"])))

    status = StatusEndpoints(config, service, records)
    # Written once: strangers may ask for it as often as they like.
    described = openapi_document(open_paths(config), asks_for_key=bool(config.api_key))
    document = JSONResponse(described).body
    chat = partial(accept_chat, reasoning_in_content=config.reasoning_in_content)
    return [
        Route("/health", health),
        Route("/health/live", live),
        Route("/version", version),
        Route("/metrics", status.metrics),
        Route("/status", status.status),
        Route("/openapi.json", openapi),
        Route("/models", models),
        Route("/models/{name:path}", model),
        Route("/chat/completions", Endpoint(service, chat), methods=["POST"]),
        Route("/chat/completions/input_tokens", Endpoint(service, input_tokens), methods=["POST"]),
        Route("/tokenize", Endpoint(service, tokenize), methods=["POST"]),
        Route("/detokenize", Endpoint(service, detokenize), methods=["POST"]),
        Route("/completions", Endpoint(service, accept_completion), methods=["POST"]),
    ]
