"""A full context: health while it is computed beside a full house, and the end of an answer.

Real HTTP and engine, a tiny model on a clock that its layers move.
"""

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from fakes import CARD as FAKE_CARD
from fakes import KEY, running
from litevl.engine import engine
from litevl.engine.engine import STALL_AFTER_S
from test_engine import Clock
from tiny_server import CARD, PATIENCE, TinyServer, ask_about, tiny_server

LONG_PROMPT = 4000
LAYER_S = STALL_AFTER_S * 2 / 3  # one may take so long, a step of several may not
OTHERS = 16  # twice as many as run at once


@pytest.fixture
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    folder = tmp_path_factory.mktemp("tiny")
    room = LONG_PROMPT + 100
    card = replace(CARD, max_model_len=room)
    with tiny_server(folder, card=card, num_blocks=room // 4 + 400, max_tokens=512) as tiny:
        yield tiny


def complete(tiny: TinyServer) -> httpx.Response:
    return httpx.post(
        f"{tiny.server.url}/v1/completions",
        json={"prompt": [20 + n % 200 for n in range(LONG_PROMPT)], "max_tokens": 2},
        headers={"x-api-key": KEY},
        timeout=PATIENCE,
        trust_env=False,
    )


def test_health_is_green_through_a_long_prompt_and_a_full_house(
    tiny: TinyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "QUEUE_S", math.inf)
    clock = Clock()
    monkeypatch.setattr(tiny.engine, "_clock", clock)

    def pass_by() -> None:
        clock.now += LAYER_S

    tiny.runner._model.on_each_layer(pass_by)  # after the heartbeat
    others = [ask_about(None, f"Other {number}?", max_tokens=8) for number in range(OTHERS)]
    seen: list[int] = []
    with ThreadPoolExecutor(OTHERS + 1) as pool:
        answers: list[Future[httpx.Response]] = [pool.submit(complete, tiny)]
        answers += [pool.submit(tiny.post, each) for each in others]
        while not all(each.done() for each in answers):
            for path in ("/health", "/health/live"):
                seen.append(tiny.server.client.get(path).status_code)
    assert {each.result().status_code for each in answers} == {200}
    assert len(seen) > 20 and set(seen) == {200}
    assert len(tiny.runner.steps) > LONG_PROMPT // 512
    tiny.check_idle()


def test_a_model_that_never_ends_is_ended_by_its_context() -> None:
    with running() as rig:
        rig.engine.script = lambda sequence: [ord("a")]  # again and again
        answer = rig.chat().json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] == FAKE_CARD.max_model_len
