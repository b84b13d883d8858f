"""How the server fares: `/metrics` for Prometheus, `/status` for the overview page.

`app.py` routes to both. Knows what is counted, never what was asked or answered.
"""

import time
from dataclasses import asdict

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from litevl import __version__
from litevl.addresses import addresses
from litevl.api.auth import caller_of
from litevl.api.fields import JSONObject
from litevl.api.records import Records
from litevl.api.service import Service
from litevl.config import Config

METRICS_S = 1.0  # the text is kept so long: strangers may ask for it, and it takes 5 ms to write


class StatusEndpoints:
    """Handlers, each a coroutine function of a request."""

    def __init__(self, config: Config, service: Service, records: Records) -> None:
        self._config = config
        self._service = service
        self._records = records
        self._text = b""
        self._written = 0.0  # when that was

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text, of this second; empty until there is a model whose name the labels
        could carry."""
        now = time.monotonic()
        backend = self._service.backend
        if backend and now - self._written >= METRICS_S:
            self._text = self._records.metrics.text(backend.card.names[0], backend.engine.stats())
            self._written = now
        return Response(self._text, headers={"content-type": CONTENT_TYPE_LATEST})

    async def status(self, request: Request) -> Response:
        """Phase, load and the caller's last requests; nulls where the model loads."""
        rate = self._records.metrics.generation_rate
        _, port = request.scope["server"]
        loading = self._service.loading
        return JSONResponse(
            {
                "status": self._service.health(),
                "loading": loading and asdict(loading),
                "version": __version__,
                "uptime_seconds": round(self._records.uptime, 3),
                "addresses": asdict(addresses(self._config, port)),
                **self._of_model(),
                "tokens_per_second": rate.per_second(time.monotonic()),
                "recent": self._records.recent(caller_of(request.scope)),
            }
        )

    def _of_model(self) -> JSONObject:
        backend = self._service.backend
        stats = backend and backend.engine.stats()
        return {
            "model": backend and backend.card.names[0],
            "max_model_len": backend and backend.card.max_model_len,
            "defaults": backend and asdict(backend.card.defaults),
            "running": stats.num_running if stats else 0,
            "waiting": stats.num_waiting if stats else 0,
            "kv_cache": stats
            and {
                "usage": round(stats.kv_usage, 6),
                "blocks": stats.num_blocks,
                "block_size": stats.block_size,
            },
        }
