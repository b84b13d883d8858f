"""A client that goes away, wherever it is on its way, frees everything and disturbs nobody.

Real HTTP, real media, real engine, tiny model. The server is stopped in a chosen place until the
client has left; nothing here waits for time to pass.
"""

import asyncio
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from fakes import KEY, assert_error, body
from litevl.api.choices import Delta
from litevl.api.records import RequestRecord
from litevl.engine import runner as runner_module
from litevl.media.workers import Child
from litevl.models.processor import Processor
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import Sequence, Step
from tiny_server import (
    PATIENCE,
    Gate,
    TinyServer,
    ask_about,
    before,
    data_url,
    picture,
    tiny_server,
)

SEED = 13  # of whoever leaves, by which it is known behind the API
TOKENS = 12
RUNS = int(os.environ.get("FAULT_RUNS", "1"))  # of each case; more in `make faults`
Patch = pytest.MonkeyPatch
fresh = count(1000)  # pictures that nobody has seen


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    with tiny_server(tmp_path_factory.mktemp("tiny")) as tiny:
        yield tiny


def request_bytes(request: dict[str, Any]) -> bytes:
    content = json.dumps(request).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def leave(connection: socket.socket, *, reset: bool) -> None:
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def leaves(sequence: Sequence) -> bool:
    return sequence.params.seed == SEED


@dataclass
class Scene:
    """A server that stops at the gate, and the request of the one who leaves there."""

    tiny: TinyServer
    patch: Patch
    gate: Gate = field(default_factory=Gate)
    sent: slice = field(default_factory=lambda: slice(None))  # of the request
    is_on_loop: bool = False  # what the gate stops: nobody notices anything before it is opened
    num_aborted: int = 0
    steps: int = 0  # in which the leaving one ran
    url: str = ""
    others: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.url = data_url(picture(next(fresh)))
        before(self.patch, self.tiny.runner, "launch", self._count)

    def _count(self, step: Step) -> None:
        self.steps += any(leaves(chunk.sequence) for chunk in step.chunks)

    def request(self, *, stream: bool) -> dict[str, Any]:
        more = {"stream": stream, "seed": SEED, "max_tokens": TOKENS}
        return ask_about(self.url, "Who leaves?", **more)

    def stop_step(self, num_tokens: int) -> None:
        """The engine's thread, where it computes that token."""

        def look(step: Step, *rest: object) -> None:
            for chunk in step.chunks:
                sequence = chunk.sequence
                if leaves(sequence) and len(sequence.output_token_ids) == num_tokens:
                    self.gate.stop()

        before(self.patch, runner_module, "pack", look)
        self.num_aborted = 1

    def stop_delta(self, is_it: Callable[[Delta], bool]) -> None:
        """The event loop, before it sends that delta."""

        def look(record: RequestRecord, delta: Delta) -> None:
            if leaves(record._answers[0].sequence) and is_it(delta):
                self.gate.stop()

        before(self.patch, RequestRecord, "note", look)
        self.is_on_loop = True


def at_connect(scene: Scene) -> None:
    scene.sent = slice(0)


def in_the_head(scene: Scene) -> None:
    scene.sent = slice(40)


def in_the_body(scene: Scene) -> None:
    scene.sent = slice(-10)


def while_prepared(scene: Scene) -> None:
    before(scene.patch, Processor, "prepare", lambda *rest: scene.gate.stop())


def while_fetched(scene: Scene) -> None:
    sink = scene.tiny.sink
    scene.url, sink.released = f"{sink.url}/hang", threading.Event()
    sink.hangs = scene.gate.reached


def while_decoded(scene: Scene) -> None:
    async def hang(child: Child) -> None:
        scene.gate.reached.set()
        await asyncio.Event().wait()

    scene.patch.setattr(Child, "receive", hang)


def in_the_queue(scene: Scene) -> None:
    """Behind one whose step does not end."""
    tiny, entered = scene.tiny, Gate()
    wanted = tiny.added.count + 2

    def look(step: Step) -> None:
        if not entered.reached.is_set():
            entered.reached.set()
            tiny.added.wait_for(wanted)
            scene.gate.stop()

    before(scene.patch, tiny.runner, "launch", look)
    blocker = threading.Thread(target=tiny.post, args=(ask_about(None, "Long.", max_tokens=2),))
    blocker.start()
    assert entered.reached.wait(PATIENCE)
    scene.others.append(blocker)
    scene.num_aborted = 1


def while_encoded(scene: Scene) -> None:
    before(scene.patch, QwenVL, "encode", lambda *rest: scene.gate.stop())
    scene.num_aborted = 1


def in_prefill(scene: Scene) -> None:
    scene.stop_step(0)


def at_the_first_token(scene: Scene) -> None:
    scene.stop_step(1)


def in_the_middle(scene: Scene) -> None:
    scene.stop_step(TOKENS // 2)


def at_the_last_token(scene: Scene) -> None:
    scene.stop_step(TOKENS - 1)


def before_done(scene: Scene) -> None:
    scene.stop_delta(lambda delta: delta.finish_reason is not None)


PHASES = [
    at_connect, in_the_head, in_the_body, while_prepared, while_fetched, while_decoded,
    in_the_queue, while_encoded, in_prefill, at_the_first_token, in_the_middle, at_the_last_token,
    before_done,
]  # fmt: skip
WITHOUT_GATE = (at_connect, in_the_head, in_the_body)


@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_a_client_that_leaves_frees_everything_and_disturbs_nobody(
    phase: Callable[[Scene], None],
    stream: bool,
    reset: bool,
    run: int,
    tiny: TinyServer,
    monkeypatch: Patch,
) -> None:
    finished, aborted = tiny.finished.count, tiny.aborted.count
    with monkeypatch.context() as patch:
        scene = Scene(tiny, patch)
        phase(scene)
        connection = tiny.server.connect()
        connection.sendall(request_bytes(scene.request(stream=stream))[scene.sent])
        if phase not in WITHOUT_GATE:
            assert scene.gate.reached.wait(PATIENCE)
        leave(connection, reset=reset)
        if scene.is_on_loop:
            scene.gate.open()
        if phase not in (at_connect, in_the_head):  # of which no record is kept
            tiny.finished.wait_for(finished + 1)
        ran = scene.steps
        scene.gate.open()
        for each in scene.others:
            each.join(PATIENCE)
        tiny.check_idle()
    assert scene.steps <= ran + 1  # the step under way, and no other
    assert tiny.aborted.count == aborted + scene.num_aborted
    if phase is in_the_queue:
        assert scene.steps == 0
    if phase is while_fetched:
        assert tiny.sink.released.wait(PATIENCE)


def test_of_a_hundred_requests_each_tenth_leaves_and_the_others_are_exact(
    tiny: TinyServer,
) -> None:
    questions = [ask_about(data_url(picture(n)), f"What {n}?", max_tokens=TOKENS) for n in range(5)]
    questions += [ask_about(None, f"Why {n}?", max_tokens=TOKENS) for n in range(5)]

    def text(number: int) -> str:
        answer = tiny.post(questions[number % 10])
        return str(answer.json()["choices"][0]["message"]["content"])

    def ask(number: int) -> str | None:
        if number % 10 != number // 10:
            return text(number)
        with tiny.server.connect() as connection:  # each question is left once
            connection.settimeout(PATIENCE)
            stream = bool(number % 2)
            more = {"stream": stream, "max_tokens": 1000}
            connection.sendall(request_bytes({**questions[number % 10], **more}))
            if stream:
                assert connection.recv(12) == b"HTTP/1.1 200"
        return None

    alone = [text(number) for number in range(10)]
    finished = tiny.finished.count
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(ask, range(100)))
    tiny.finished.wait_for(finished + 100)
    expected = [None if n % 10 == n // 10 else alone[n % 10] for n in range(100)]
    assert answers == expected
    tiny.check_idle()


def test_a_prompt_that_fills_the_context_is_refused_and_keeps_nothing(tiny: TinyServer) -> None:
    long = [{"role": "user", "content": "a b c d e f " * 2000}]
    answer = tiny.server.client.post("/v1/chat/completions", json=body(messages=long))
    text = assert_error(answer, 400, "context_length_exceeded", "messages")
    assert "maximum context length" in text
    tiny.check_idle()
