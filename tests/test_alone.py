"""A fault in one of eight requests, in every place on its way, is felt by that request alone.

Real server, real tiny model: the other seven get what they get on an undisturbed day, token for
token, and in the end everything is free. `FAULT_RUNS=20` repeats each case (`make faults`).
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fakes import KEY, FreeMask
from litevl.api.detokenizer import Detokenizer
from litevl.engine import runner as runner_module
from litevl.engine.engine import Engine
from litevl.engine.sampler import Sampler
from litevl.media.fetch import Fetcher
from litevl.media.workers import Workers
from litevl.models.processor import Processor
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import Sequence, Step
from tiny_server import TinyServer, ask_about, before, data_url, picture, tiny_server

RUNS = int(os.environ.get("FAULT_RUNS", "1"))
SEED = 13  # the victim's, by which it is known behind the API
STOP = "which nobody says"  # and within it
VICTIM = 5
WIDTH = 96  # of its picture; the others' are 64
TOKENS = 10
LATER = 3  # tokens that are sent before a late fault

Patch = pytest.MonkeyPatch
Error = Exception


class PlantedError(Exception):
    """In no list of anybody's."""


PLANTED = PlantedError("planted")


def raise_if(found: bool, error: Error) -> None:
    if found:
        raise error


def is_victim(sequence: Sequence, num_tokens: int) -> bool:
    return sequence.params.seed == SEED and len(sequence.output_token_ids) == num_tokens


def in_step(patch: Patch, error: Error, num_tokens: int) -> None:
    def look(step: Step, *rest: object) -> None:
        raise_if(any(is_victim(chunk.sequence, num_tokens) for chunk in step.chunks), error)

    before(patch, runner_module, "pack", look)


def in_fetch(patch: Patch, error: Error) -> None:
    def look(fetcher: Fetcher, ref: Any, *rest: object) -> None:
        raise_if(ref.url.endswith(f"/{VICTIM}"), error)

    before(patch, Fetcher, "fetch", look)


def in_decode(patch: Patch, error: Error) -> None:
    victims = picture(VICTIM, WIDTH)
    before(
        patch, Workers, "decode", lambda workers, item, *rest: raise_if(item.data == victims, error)
    )


def in_prepare(patch: Patch, error: Error) -> None:
    def look(processor: Processor, conversation: object, media: Any) -> None:
        raise_if(any(each.probe.width == WIDTH for each in media), error)

    before(patch, Processor, "prepare", look)


def in_encode(patch: Patch, error: Error) -> None:
    def look(model: QwenVL, items: Any) -> None:
        raise_if(any(item.grid[2] > item.grid[1] for item in items), error)

    before(patch, QwenVL, "encode", look)


def in_sample(patch: Patch, error: Error) -> None:
    def look(sampler: Sampler, logits: object, sequences: Any) -> None:
        raise_if(any(is_victim(each, LATER) for each in sequences), error)

    before(patch, Sampler, "sample", look)


def in_logits(patch: Patch, error: Error) -> None:
    def spoil(sampler: Sampler, logits: torch.Tensor, sequences: Any) -> None:
        for row, sequence in enumerate(sequences):
            if is_victim(sequence, LATER):
                logits[row, 7] = torch.nan

    before(patch, Sampler, "sample", spoil)


def in_mask(patch: Patch, error: Error) -> None:
    before(patch, FreeMask, "fill", lambda *rest: raise_if(True, error))


def in_grammar(patch: Patch, error: Error) -> None:
    seen: list[int] = []

    def count(mask: FreeMask, token_id: int) -> None:
        seen.append(token_id)
        raise_if(len(seen) > LATER, error)

    before(patch, FreeMask, "accept", count)


def in_stop_check(patch: Patch, error: Error) -> None:
    def look(engine: Engine, sequence: Sequence, token_id: int) -> None:
        raise_if(is_victim(sequence, LATER + 1), error)

    before(patch, Engine, "_finish_reason", look)


def in_detokenizer(patch: Patch, error: Error) -> None:
    seen: list[int] = []

    def count(detokenizer: Detokenizer, token_id: int) -> None:
        if detokenizer._stop == (STOP,):
            seen.append(token_id)
            raise_if(len(seen) > LATER, error)

    before(patch, Detokenizer, "push", count)


@dataclass(frozen=True)
class Fault:
    """Where, and what the victim is told if nothing has been sent."""

    plant: Callable[[Patch, Error], None]
    is_early: bool  # before its first token
    reaches_engine: bool = True
    error: Error = PLANTED
    status: int = 500
    code: str = "server_error"


def _full(plant: Callable[[Patch, Error], None], *, is_early: bool) -> Fault:
    error = torch.OutOfMemoryError("planted")
    return Fault(plant, is_early, error=error, status=503, code="server_is_overloaded")


def in_prefill(patch: Patch, error: Error) -> None:
    in_step(patch, error, 0)


def in_a_later_step(patch: Patch, error: Error) -> None:
    in_step(patch, error, LATER)


FAULTS = {
    "fetch": Fault(in_fetch, is_early=True, reaches_engine=False),
    "decode": Fault(in_decode, is_early=True, reaches_engine=False),
    "prepare": Fault(in_prepare, is_early=True, reaches_engine=False),
    "encode": Fault(in_encode, is_early=True),
    "prefill": Fault(in_prefill, is_early=True),
    "mask": Fault(in_mask, is_early=True),
    "decode step": Fault(in_a_later_step, is_early=False),
    "sample": Fault(in_sample, is_early=False),
    "NaN": Fault(in_logits, is_early=False),
    "grammar": Fault(in_grammar, is_early=False),
    "stop check": Fault(in_stop_check, is_early=False),
    "detokenise": Fault(in_detokenizer, is_early=False),
    "memory for encode": _full(in_encode, is_early=True),
    "memory for prefill": _full(in_prefill, is_early=True),
    "memory for a later step": _full(in_a_later_step, is_early=False),
}
KEYS = tuple(f"sk-test-key-{number}" for number in range(2 * len(FAULTS) * RUNS + 10))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    with tiny_server(tmp_path_factory.mktemp("tiny"), keys=(KEY, *KEYS)) as tiny:
        yield tiny


@pytest.fixture(scope="module")
def fresh_keys() -> Iterator[str]:
    """Callers that nothing is cached for."""
    return iter(KEYS)


def bodies(tiny: TinyServer, **fields: object) -> list[dict[str, Any]]:
    """Eight requests: of pictures by URL and in the body, and of text; the victim has both."""
    each = [
        ask_about(f"{tiny.sink.url}/0", "Zero?"),
        ask_about(data_url(picture(1)), "One?"),
        ask_about(None, "Two? " * 9),
        ask_about(None, "Three?"),
        ask_about(data_url(picture(4)), "Four? " * 9),
        ask_about(f"{tiny.sink.url}/{VICTIM}", "Five?"),
        ask_about(data_url(picture(1)), "Six?"),
        ask_about(None, "Seven?"),
    ]
    return [{**body, "max_tokens": TOKENS, **fields} for body in each]


def victims(tiny: TinyServer, fault: Fault, **fields: object) -> dict[str, Any]:
    url = data_url(picture(VICTIM, WIDTH))
    body = bodies(tiny, **fields)[VICTIM] if fault.plant is in_fetch else ask_about(url, "Five?")
    choice = {"choice": ["a"]} if fault.plant in (in_mask, in_grammar) else None
    more: dict[str, Any] = {"seed": SEED, "structured_outputs": choice, "max_tokens": TOKENS}
    if fault.plant is in_detokenizer:
        more["stop"] = [STOP]
    return {**body, **more, **fields}


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def undisturbed(tiny: TinyServer) -> list[str]:
    answers = [text(each.json()) for each in tiny.post_all(bodies(tiny))]
    tiny.check_idle()
    assert len(set(answers)) == 8  # a mix-up would be seen
    return answers


def wait_for_all(tiny: TinyServer, patch: Patch, count: int) -> None:
    """No step before so many more sequences are in the engine: they run in one batch."""
    wanted = tiny.added.count + count
    before(patch, tiny.runner, "launch", lambda step: tiny.added.wait_for(wanted))


@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_one_request_is_felt_by_it_alone(
    name: str,
    stream: bool,
    run: int,
    tiny: TinyServer,
    undisturbed: list[str],
    fresh_keys: Iterator[str],
    monkeypatch: Patch,
) -> None:
    fault = FAULTS[name]
    requests = bodies(tiny)
    requests[VICTIM] = victims(tiny, fault, stream=stream)
    with monkeypatch.context() as patch:
        fault.plant(patch, fault.error)
        wait_for_all(tiny, patch, 8 if fault.reaches_engine else 7)
        answers = tiny.post_all(requests, next(fresh_keys))
    victim = answers.pop(VICTIM)
    assert [text(each.json()) for each in answers] == undisturbed[:VICTIM] + undisturbed[6:]
    if stream and not fault.is_early:
        *frames, last, rest = victim.text.split("\n\n")
        assert (victim.status_code, rest) == (200, "")
        assert 1 <= len(frames) <= LATER
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == fault.code
    else:
        assert victim.status_code == fault.status, victim.text
        assert victim.json()["error"]["code"] == fault.code
        header = {500: "x-should-retry", 503: "retry-after"}[fault.status]
        assert victim.headers[header] in ("false", "2")
    tiny.check_idle()


@pytest.mark.parametrize("plant", [in_encode, in_prefill, in_a_later_step])
def test_memory_that_is_short_once_is_noticed_by_nobody(
    plant: Callable[[Patch, Error], None],
    tiny: TinyServer,
    undisturbed: list[str],
    fresh_keys: Iterator[str],
    monkeypatch: Patch,
) -> None:
    raised: list[int] = []

    def raise_once(found: bool, error: Error) -> None:
        if found and not raised:
            raised.append(1)
            raise error

    with monkeypatch.context() as patch:
        patch.setattr("test_alone.raise_if", raise_once)
        plant(patch, torch.OutOfMemoryError("planted"))
        wait_for_all(tiny, patch, 9)
        requests = [*bodies(tiny), victims(tiny, FAULTS["encode"])]
        answers = tiny.post_all(requests, next(fresh_keys))
    assert raised
    assert [text(each.json()) for each in answers[:8]] == undisturbed
    assert answers[8].status_code == 200
    tiny.check_idle()


def test_the_hosts_allocator_says_it_in_other_words(
    tiny: TinyServer, fresh_keys: Iterator[str], monkeypatch: Patch
) -> None:
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    with monkeypatch.context() as patch:
        in_prefill(patch, error)
        answer = tiny.post(victims(tiny, FAULTS["prefill"]), next(fresh_keys))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
    tiny.check_idle()
