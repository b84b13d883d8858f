"""A real server around a tiny random model on the CPU: real HTTP, media, processor and engine.

Used by the tests of faults and of leaving clients. Only the grammars are fake: they allow all.
`Gate` stops the server in a chosen place until the test has done what it came for.
"""

import base64
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fakes import KEY, FakeGrammars, Rig, running
from litevl.api.ports import Backend
from litevl.api.records import Records, RequestRecord
from litevl.config import Config
from litevl.engine.engine import Engine
from litevl.media import fetch, workers
from litevl.media.loader import MediaLoader
from litevl.sequence import ModelCard, SamplingDefaults, Sequence
from rig import LoggedRunner
from rig import Rig as Model
from tiny_models import make_checkpoint

MAX_LEN = 1600
PATIENCE = 240.0  # seconds, until a hang fails its test on a busy machine
CARD = ModelCard(
    names=("tiny",),
    created=0,
    max_model_len=MAX_LEN,
    vocab_size=258,
    eos_token_ids=frozenset(),
    defaults=SamplingDefaults(temperature=0.0),
)


class Gate:
    """Stops whoever comes to it first, until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()

    def stop(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self._opened.wait(PATIENCE)

    def open(self) -> None:
        self._opened.set()


@dataclass
class Counted:
    """A number that threads may wait for."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    count: int = 0

    def add(self) -> None:
        with self.changed:
            self.count += 1
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, PATIENCE)


class Sink(ThreadingHTTPServer):
    """Serves pictures by number; `/hang` says nothing until its client is gone. What a test waits
    for it sets anew."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SinkHandler)
        self.hangs, self.released = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _SinkHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        sink = self.server
        assert isinstance(sink, Sink)
        if self.path == "/hang":
            sink.hangs.set()
            self.connection.recv(1)  # comes back when the other side closes
            sink.released.set()
            return
        content = picture(int(self.path.removeprefix("/")))
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """It is a test."""


def picture(seed: int, width: int = 64) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def ask_about(url: str | None, text: str, **fields: object) -> dict[str, Any]:
    """A request of one picture, or of none, and a text; greedy."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if url:
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}, "max_pixels": 64 * 96})
    return {"messages": [{"role": "user", "content": parts}], "temperature": 0, **fields}


@dataclass(frozen=True, kw_only=True)
class TinyServer:
    """The server, what stands behind it, and what has come and gone."""

    server: Rig
    engine: Engine
    runner: LoggedRunner
    media: MediaLoader
    sink: Sink
    added: Counted
    aborted: Counted
    sequences: list[Sequence]  # that were added
    records: list[RequestRecord]
    finished: Counted

    def post(self, body: dict[str, Any], key: str = KEY) -> httpx.Response:
        return httpx.post(
            f"{self.server.url}/v1/chat/completions",
            json=body,
            headers={"x-api-key": key},
            timeout=PATIENCE,
            trust_env=False,
        )

    def post_all(self, bodies: list[dict[str, Any]], key: str = KEY) -> list[httpx.Response]:
        """All at once."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.post(body, key), bodies))

    def check_idle(self) -> None:
        """Everything is free once the engine has made another step."""
        answer = self.post(ask_about(None, "Rest.", max_tokens=1))
        assert answer.status_code == 200
        self._wait_for_record(answer.headers["x-request-id"])  # or it would count in the next test
        self.engine.check_idle()
        assert self.engine.stats().num_leaked == 0
        assert self.server.service.num_running == 0

    def _wait_for_record(self, name: str) -> None:
        """Until that request is finished, which it is a moment after its answer."""
        while True:
            count = self.finished.count
            if any(record.name == name for record in self.records):
                return
            self.finished.wait_for(count + 1)


@contextmanager
def tiny_server(
    folder: Path, keys: tuple[str, ...] = (KEY,), card: ModelCard = CARD, **sizes: int
) -> Iterator[TinyServer]:
    model = Model(make_checkpoint("qwen3_vl", folder))
    usual = {"num_blocks": 400, "max_tokens": 32, "max_num_seqs": 8}
    engine, runner = model.engine(**usual | sizes)
    model.model.on_each_layer(engine.beat)
    media = MediaLoader(model.processor, Config(media_networks=("127.0.0.0/8",)))
    backend = Backend(
        card=card,
        engine=engine,
        preprocessor=model.processor.with_max_model_len(card.max_model_len),
        grammars=FakeGrammars(),
        media=media,
    )
    with pytest.MonkeyPatch.context() as patch, Sink() as sink:
        for seconds in (fetch.SECONDS, workers.SECONDS):
            patch.setitem(seconds, "image", PATIENCE)
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        records: list[RequestRecord] = []
        sequences: list[Sequence] = []
        added = count_calls(patch, engine, "add", sequences)
        aborted = count_calls(patch, engine, "abort")
        finished = count_calls(patch, Records, "finish", records)
        with running(is_loaded=False, api_key=keys) as server:
            server.service.attach(backend)
            yield TinyServer(
                server=server,
                engine=engine,
                runner=runner,
                media=media,
                sink=sink,
                added=added,
                aborted=aborted,
                sequences=sequences,
                records=records,
                finished=finished,
            )
        sink.shutdown()


def count_calls(
    patch: pytest.MonkeyPatch, owner: Any, name: str, kept: list[Any] | None = None
) -> Counted:
    """Count the calls of a method once they are done; keep their last arguments."""
    counted, call = Counted(), getattr(owner, name)

    def counting(*args: Any) -> Any:
        result = call(*args)
        if kept is not None:
            kept.append(args[-1])
        counted.add()
        return result

    patch.setattr(owner, name, counting)
    return counted


def before(patch: pytest.MonkeyPatch, owner: Any, name: str, first: Callable[..., object]) -> None:
    """Have `first` called with a function's arguments, before it; it may raise or wait."""
    call = getattr(owner, name)

    def changed(*args: Any, **options: Any) -> Any:
        first(*args, **options)
        return call(*args, **options)

    patch.setattr(owner, name, changed)
