"""A client that goes away frees its sequence: real HTTP, real engine, tiny model."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fakes import PATIENCE, FakeGrammars, FakeMedia, assert_error, body, request_bytes, running
from fakes import Rig as Server
from litevl.api.ports import Backend
from litevl.engine.engine import Engine
from litevl.sequence import ModelCard, SamplingDefaults
from rig import LoggedRunner, Rig
from tiny_models import make_checkpoint

CARD = ModelCard(
    names=("tiny",),
    created=0,
    max_model_len=1600,
    vocab_size=258,
    eos_token_ids=frozenset(),
    defaults=SamplingDefaults(temperature=0.0),
)


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Engine, LoggedRunner, Backend]:
    rig = Rig(make_checkpoint("qwen3_vl", tmp_path))
    engine, runner = rig.engine(num_blocks=400, max_tokens=32)
    backend = Backend(
        card=CARD,
        engine=engine,
        preprocessor=rig.processor,
        grammars=FakeGrammars(),
        media=FakeMedia(),
    )
    return engine, runner, backend


@pytest.fixture
def server(tiny: tuple[Engine, LoggedRunner, Backend]) -> Iterator[Server]:
    with running(is_loaded=False) as server:
        server.service.attach(tiny[2])
        yield server


@pytest.mark.parametrize("stream", [True, False])
def test_a_sequence_is_freed_when_its_client_leaves(
    tiny: tuple[Engine, LoggedRunner, Backend],
    server: Server,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, runner, _ = tiny
    aborted, computing = threading.Event(), threading.Event()
    abort, launch = engine.abort, runner.launch
    steps_at_abort: list[int] = []

    def note_abort(request_id: str) -> None:
        abort(request_id)
        steps_at_abort.append(engine.num_steps)
        aborted.set()

    def note_launch(step: object) -> object:
        computing.set()
        return launch(step)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "abort", note_abort)
    monkeypatch.setattr(runner, "launch", note_launch)
    with server.connect() as connection:
        connection.sendall(request_bytes(stream=stream, max_tokens=1500))
        assert computing.wait(PATIENCE)
        if stream:
            assert connection.recv(12) == b"HTTP/1.1 200"
    assert aborted.wait(PATIENCE)
    assert server.chat(max_tokens=1).status_code == 200
    engine.check_idle()
    # The step under way, one more at the most, and those of the second request.
    assert engine.num_steps <= steps_at_abort[0] + 4
    assert engine.num_steps < 1500


def test_a_prompt_that_fills_the_context_is_refused_and_keeps_nothing(
    tiny: tuple[Engine, LoggedRunner, Backend], server: Server
) -> None:
    long = [{"role": "user", "content": "a b c d e f " * 2000}]
    answer = server.client.post("/v1/chat/completions", json=body(messages=long))
    text = assert_error(answer, 400, "context_length_exceeded", "messages")
    assert "maximum context length" in text
    tiny[0].check_idle()


def test_answers_are_those_of_the_model_whatever_the_client_does(server: Server) -> None:
    question = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 30}

    def ask(_: int) -> str:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json=question,
            headers=dict(server.client.headers),
            timeout=PATIENCE,
        )
        return str(answer.json()["choices"][0]["message"]["content"])

    alone = ask(0)
    for _ in range(3):
        with server.connect() as connection:
            connection.sendall(request_bytes(stream=True, max_tokens=1500))
        assert ask(0) == alone
