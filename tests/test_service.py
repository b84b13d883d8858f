"""Between loading and drained: health, admission, and clients that go away."""

import asyncio
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest

from fakes import (
    ANSWER,
    CARD,
    EOS,
    PATIENCE,
    FakeEngine,
    FakeGrammars,
    FakeMedia,
    FakePreprocessor,
    Rig,
    assert_error,
    body,
    request_bytes,
    running,
    say,
)
from litevl.api.choices import TURN, Choice, PlainReader, read_deltas
from litevl.api.detokenizer import Detokenizer
from litevl.api.ports import Backend
from litevl.api.protocol import ChatCompletionRequest
from litevl.api.service import Service
from litevl.config import Config
from litevl.errors import QueueFullError
from litevl.health import Health
from litevl.sequence import FinishReason, Sequence, StepOutput


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as rig:
        yield rig


# Health ----------------------------------------------------------------------------------------


def health(rig: Rig, path: str = "/health") -> tuple[int, str]:
    answer = rig.client.get(path)
    return answer.status_code, answer.json()["status"]


def test_loading_is_503_until_the_model_is_attached() -> None:
    with running(is_loaded=False) as rig:
        assert health(rig) == (503, "loading")
        assert health(rig, "/health/live") == (200, "loading")
        for answer in (rig.chat(), rig.chat(stream=True), rig.client.get("/v1/models")):
            assert "loading" in assert_error(answer, 503, "server_is_overloaded")
            assert answer.headers["retry-after"]
        rig.attach()
        assert health(rig) == (200, "ready")
        assert rig.chat().status_code == 200


@pytest.mark.parametrize(
    ("state", "code"), [(Health.STALLED, "server_is_overloaded"), (Health.DEAD, "server_error")]
)
def test_a_stalled_or_dead_engine_turns_both_red(rig: Rig, state: Health, code: str) -> None:
    rig.engine.state = state
    assert health(rig) == (503, state)
    assert health(rig, "/health/live") == (503, state)
    assert_error(rig.chat(), 503, code)


def test_draining_finishes_what_runs_and_takes_nothing_new(rig: Rig) -> None:
    rig.engine.hold(3)
    with rig.client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as stream:
        lines = stream.iter_lines()
        next(lines)
        rig.service.drain()
        assert health(rig) == (503, "draining")
        assert health(rig, "/health/live") == (200, "draining")
        assert "draining" in assert_error(rig.chat(), 503, "server_is_overloaded")
        rig.engine.release()
        assert [line for line in lines if line][-1] == "data: [DONE]"


# Clients that go away --------------------------------------------------------------------------


def test_a_client_that_hangs_up_on_a_whole_answer_frees_the_sequence(rig: Rig) -> None:
    rig.engine.hold(3)
    with rig.connect() as connection:
        connection.sendall(request_bytes())
        rig.engine.wait_until(lambda engine: bool(engine.added))
    rig.engine.wait_until(lambda engine: engine.aborted == [engine.added[0].request_id])
    assert health(rig) == (200, "ready")
    assert rig.service.num_running == 0


def test_a_client_that_hangs_up_while_the_prompt_is_prepared_reaches_no_engine(rig: Rig) -> None:
    rig.preprocessor.may_go.clear()
    with rig.connect() as connection:
        connection.sendall(request_bytes())
        assert rig.preprocessor.entered.wait(PATIENCE)
    assert health(rig) == (200, "ready")
    rig.preprocessor.may_go.set()
    assert rig.chat().status_code == 200
    assert len(rig.engine.added) == 1


def test_a_client_that_hangs_up_within_the_body_is_forgotten(rig: Rig) -> None:
    with rig.connect() as connection:
        connection.sendall(request_bytes()[:-5])
    assert rig.chat().status_code == 200
    assert len(rig.engine.added) == 1


def test_many_answers_at_once_do_not_mix(rig: Rig) -> None:
    rig.engine.script = lambda sequence: say(
        f"echo {bytes(sequence.prompt.token_ids.tolist()).decode()}"
    )

    def ask(number: int) -> str:
        messages = [{"role": "user", "content": str(number)}]
        return str(rig.chat(messages=messages).json()["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == [f"echo {number}" for number in range(24)]


def test_two_requests_at_once_may_carry_the_same_request_id(rig: Rig) -> None:
    def ask(number: int) -> str:
        headers = {"x-request-id": "same"}
        answer = rig.client.post("/v1/chat/completions", json=body(), headers=headers)
        return str(answer.json()["choices"][0]["message"]["content"])

    rig.engine.hold()
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(ask, range(2))
        rig.engine.wait_until(lambda engine: engine.num_running == 2)
        rig.engine.release()
        assert list(answers) == [ANSWER, ANSWER]


def test_a_large_body_is_not_kept_while_the_model_answers(rig: Rig) -> None:
    url = "data:image/png;base64," + "A" * 2**24
    part = {"type": "image_url", "image_url": {"url": url}}
    request = request_bytes(messages=[{"role": "user", "content": [part]}], stream=True)
    rig.engine.hold(1)
    tracemalloc.start()
    try:
        with rig.connect() as connection:
            connection.sendall(request)
            assert connection.recv(9) == b"HTTP/1.1 "
            rig.media.refs.clear()
            assert tracemalloc.get_traced_memory()[0] < 2**22
    finally:
        tracemalloc.stop()


# The service below the wire --------------------------------------------------------------------


def ready(engine: FakeEngine) -> tuple[Service, Backend]:
    service = Service(Config())
    backend = Backend(
        card=CARD,
        engine=engine,
        preprocessor=FakePreprocessor(),
        grammars=FakeGrammars(),
        media=FakeMedia(),
    )
    service.bind()
    service.attach(backend)
    return service, backend


def sequences(*names: str) -> list[Sequence]:
    request = ChatCompletionRequest.parse(body())
    prompt = FakePreprocessor().prepare(request.conversation, [])
    (params,) = request.sampling.params(CARD, len(prompt), seed=0)
    return [Sequence(request_id=name, prompt=prompt, params=params) for name in names]


def token(name: str, token_id: int, reason: FinishReason | None = None) -> StepOutput:
    return StepOutput(request_id=name, token_id=token_id, finish_reason=reason)


@pytest.mark.anyio
async def test_steps_that_a_slow_reader_missed_come_together_and_in_order() -> None:
    engine = FakeEngine()
    engine.hold()
    service, backend = ready(engine)
    with service.generation(backend, sequences("a", "c")) as generation:
        first = asyncio.ensure_future(generation.take())
        await asyncio.sleep(0)
        engine.deliver([token("a", 1)])
        assert await first == [token("a", 1)]
        engine.deliver([token("a", 2), token("b", 9), token("c", 3)])
        engine.deliver([token("a", EOS, FinishReason.STOP), token("c", 4)])
        assert [(each.request_id, each.token_id) for each in await generation.take()] == [
            ("a", 2),
            ("c", 3),
            ("a", EOS),
            ("c", 4),
        ]
        was_open = generation.is_open
        generation.end("c")
        assert (was_open, generation.is_open) == (True, False)
    assert engine.aborted == ["c"]
    assert service.num_running == 0
    await service.stop()


@pytest.mark.anyio
async def test_what_a_slow_reader_missed_is_read_in_turns_with_others() -> None:
    engine = FakeEngine()
    engine.hold()
    service, backend = ready(engine)
    choice = Choice(
        0,
        "a",
        detokenizer=Detokenizer(lambda token_id: bytes([token_id]), stop=("b",)),
        reader=PlainReader(),
        token_name=lambda token_id: b"",
    )
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with aclosing(
        read_deltas(service.generation(backend, sequences("a")), [choice], lambda delta: None)
    ) as deltas:
        first = asyncio.ensure_future(anext(deltas))
        await asyncio.sleep(0)
        missed = b"a" * 10 * TURN + b"b" * TURN  # what follows the stop string is no news
        engine.deliver([token("a", each) for each in missed])
        read = [await first]
        other = asyncio.ensure_future(others())
        read += [delta async for delta in deltas]
        other.cancel()
    assert turns >= 10
    assert [delta.completion_tokens for delta in read][-1] == 10 * TURN + 1
    assert [delta.finish_reason for delta in read] == [None] * 10 + [FinishReason.STOP]
    await service.stop()


@pytest.mark.anyio
async def test_tokens_that_came_with_an_error_are_told_before_it() -> None:
    engine = FakeEngine()
    engine.hold()
    service, backend = ready(engine)
    failed = StepOutput(request_id="a", finish_reason=FinishReason.ERROR, error=QueueFullError("x"))
    with service.generation(backend, sequences("a", "b")) as generation:
        engine.deliver([token("b", 1), token("a", 1)])
        engine.deliver([failed, token("b", 2)])
        assert await generation.take() == [token("b", 1), token("a", 1)]
        with pytest.raises(QueueFullError):
            await generation.take()
    assert set(engine.aborted) == {"a", "b"}  # ids that have ended are ignored
    await service.stop()


@pytest.mark.anyio
async def test_leaving_a_generation_aborts_what_has_not_ended() -> None:
    engine = FakeEngine()
    engine.hold(1)
    service, backend = ready(engine)
    with service.generation(backend, sequences("a", "b")) as generation:
        await generation.take()
    assert sorted(engine.aborted) == ["a", "b"]
    assert service.num_running == 0
    await service.stop()
    assert isinstance(backend.media, FakeMedia) and backend.media.is_closed


@pytest.mark.anyio
async def test_a_request_of_which_one_sequence_is_refused_leaves_none_behind() -> None:
    class Narrow(FakeEngine):
        def add(self, sequence: Sequence) -> None:
            if self.added:
                raise QueueFullError("full")
            super().add(sequence)

    async def run() -> None:
        with service.generation(backend, sequences("a", "b")) as generation:
            await generation.take()

    engine = Narrow()
    engine.hold()
    service, backend = ready(engine)
    with pytest.raises(QueueFullError):
        await run()
    assert "a" in engine.aborted
    assert service.num_running == 0
    await service.stop()


@pytest.mark.anyio
async def test_a_stop_string_is_told_when_the_engine_has_let_go() -> None:
    engine = FakeEngine()
    engine.hold(3)
    service, backend = ready(engine)
    names = ("a", "b")
    choices = [
        Choice(
            index,
            name,
            detokenizer=Detokenizer(backend.preprocessor.token_bytes, ("Two",)[index:]),
            reader=PlainReader(),
            token_name=backend.preprocessor.token_name,
        )
        for index, name in enumerate(names)
    ]
    generation = service.generation(backend, sequences(*names))
    async with aclosing(read_deltas(generation, choices, lambda delta: None)) as deltas:
        while (await anext(deltas)).finish_reason is None:
            pass
        assert engine.aborted == ["a"]  # though nobody has asked for what comes after it
    assert engine.aborted == ["a", "b"]
    await service.stop()
