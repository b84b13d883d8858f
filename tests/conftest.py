"""Settings that every test shares: no hub is asked, no example is timed, async means asyncio."""

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import settings

from litevl.errors import LitevlError
from litevl.logs import JsonFormatter
from litevl.media.workers import Workers
from live import KEY, OTHER_KEY, LiveServer, serve

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is first imported

logging.getLogger("httpx").setLevel(logging.WARNING)  # the tests' own client tells whom it asks

settings.register_profile("litevl", deadline=None, print_blob=True)
settings.register_profile("long", deadline=None, print_blob=True, max_examples=5000)
settings.load_profile("litevl")


# What tests send, in keys and content: none of it may reach the log or an error.
CANARIES = ("canary", KEY, OTHER_KEY, "sk-test-key", "sk-second-key", "iVBORw0KGgo", "/9j/4AAQ")

PROUD = ("transformers",)  # these keep their records from the root's handlers
QUIET = ("uvicorn", "qwen_vl_utils")  # so `litevl serve` has them, in this process too

LEAK = "held while idle"  # an engine says so when nothing runs and not everything is free


class Watch(logging.Handler):
    """Notes every line of any log that holds something of a caller's, or tells of a leak."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._formatter = JsonFormatter()

    def emit(self, record: logging.LogRecord) -> None:
        line = self._formatter.format(record)
        if any(word in line for word in (*CANARIES, "base64,", LEAK)):
            self.found.append(line)


@contextmanager
def _watched(watch: Watch) -> Iterator[None]:
    """All loggers, from INFO up as `litevl serve` has it for its own."""
    roots = [logging.getLogger(), *map(logging.getLogger, PROUD)]
    every = [*roots, *map(logging.getLogger, QUIET)]
    levels = [logger.level for logger in every]
    for logger in roots:
        logger.addHandler(watch)
    for logger in every:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(every, levels, strict=True):
            logger.removeHandler(watch)
            logger.setLevel(level)


@pytest.fixture(autouse=True)
def nothing_of_a_caller_is_told_and_nothing_leaks() -> Iterator[Watch]:
    watch = Watch()
    begin = LitevlError.__init__

    def noting_begin(self: LitevlError, message: str, **more: Any) -> None:
        if any(canary in message for canary in CANARIES):
            watch.found.append(message)
        begin(self, message, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitevlError, "__init__", noting_begin)
        with _watched(watch):
            yield watch
    assert watch.found == []


@pytest.fixture
def anyio_backend() -> str:
    """What `@pytest.mark.anyio` runs on."""
    return "asyncio"


@pytest.fixture
async def pool(anyio_backend: str) -> AsyncIterator[Workers]:
    """One decoding child."""
    workers = Workers(1)
    yield workers
    await workers.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """`litevl serve` with the demo model, a key, and loopback open for media."""
    folder = tmp_path_factory.mktemp("state")
    with serve(
        "--media-networks", "127.0.0.0/8", folder=folder, LITEVL_API_KEY=f"{KEY},{OTHER_KEY}"
    ) as live:
        yield live
        metrics = httpx.get(f"{live.address}/metrics", trust_env=False).text
        assert 'litevl:leaked_total{engine="0",model_name="litevl-demo"} 0.0' in metrics
