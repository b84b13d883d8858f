"""The engine around a scripted runner: how requests enter, end, fail and leave."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from litevl.cache import Cache
from litevl.engine.blocks import BlockPool
from litevl.engine.engine import QUEUE_S, Engine
from litevl.engine.scheduler import Scheduler
from litevl.errors import ContextLengthError, QueueFullError, UnavailableError
from litevl.sequence import (
    Chunk,
    ChunkOutput,
    FinishReason,
    Prompt,
    SampledToken,
    SamplingParams,
    Sequence,
    Step,
    StepOutput,
)

EOS = 99
TIMEOUT_S = 20.0  # a hang fails the test; nothing here takes long


@dataclass
class Computed:
    chunks: list[ChunkOutput]

    def wait(self) -> list[ChunkOutput]:
        return self.chunks


@dataclass
class ScriptedRunner:
    """Counts up from 0 for each request; `before` may look at a step, block it, or raise."""

    before: Callable[[Step], None] = lambda step: None
    steps: list[Step] = field(default_factory=list)
    end_after: int = 10**9

    def launch(self, step: Step) -> Computed:
        self.steps.append(step)
        self.before(step)
        return Computed([self._computed(chunk) for chunk in step.chunks])

    def _computed(self, chunk: Chunk) -> ChunkOutput:
        length = len(chunk.sequence.output_token_ids)
        token = SampledToken(token_id=EOS if length >= self.end_after else length)
        return ChunkOutput(token=token if chunk.is_last else None)

    def check_device(self) -> None:
        """It is there."""


class Outbox:
    """Collects what the engine delivers, and waits for an end."""

    def __init__(self) -> None:
        self.outputs: list[StepOutput] = []
        self._changed = threading.Condition()

    def deliver(self, outputs: list[StepOutput]) -> None:
        with self._changed:
            self.outputs += outputs
            self._changed.notify_all()

    def of(self, request_id: str) -> list[StepOutput]:
        return [output for output in self.outputs if output.request_id == request_id]

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(predicate, TIMEOUT_S)

    def wait_for_end(self, *request_ids: str) -> None:
        self.wait_for(
            lambda: all(any(o.finish_reason for o in self.of(name)) for name in request_ids)
        )


def engine(
    runner: ScriptedRunner,
    *,
    max_queued: int = 10,
    num_blocks: int = 64,
    max_num_seqs: int = 4,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    scheduler = Scheduler(
        BlockPool(num_blocks, 4),
        Cache(),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=16,
    )
    return Engine(
        scheduler,
        runner,
        max_model_len=64,
        max_num_seqs=max_num_seqs,
        max_num_queued_reqs=max_queued,
        clock=clock,
    )


def request(name: str, length: int = 5, max_tokens: int = 3, token: int = 0) -> Sequence:
    prompt = Prompt(
        token_ids=np.full(length, token, dtype=np.int64),
        positions=np.zeros((3, length), dtype=np.int64),
        position_delta=0,
    )
    params = SamplingParams(max_tokens=max_tokens, stop_token_ids=frozenset({EOS}))
    return Sequence(request_id=name, prompt=prompt, params=params)


def test_a_request_ends_by_length_with_all_its_tokens() -> None:
    each, outbox = engine(ScriptedRunner()), Outbox()
    each.start(outbox.deliver)
    each.add(request("a"))
    outbox.wait_for_end("a")
    each.stop()
    assert [output.token_id for output in outbox.of("a")] == [0, 1, 2]
    assert [o.finish_reason for o in outbox.of("a")] == [None, None, FinishReason.LENGTH]
    each.check_idle()


def test_a_request_ends_by_a_stop_token() -> None:
    each, outbox = engine(ScriptedRunner(end_after=1)), Outbox()
    each.start(outbox.deliver)
    each.add(request("a", max_tokens=9))
    outbox.wait_for_end("a")
    each.stop()
    assert outbox.of("a")[-1] == StepOutput(
        request_id="a", token_id=EOS, finish_reason=FinishReason.STOP
    )


def test_a_later_request_joins_the_running_batch_and_leaves_it() -> None:
    added = threading.Event()

    def hold(step: Step) -> None:
        if step.chunks[0].sequence.output_token_ids:
            assert added.wait(TIMEOUT_S)

    runner, outbox = ScriptedRunner(before=hold), Outbox()
    each = engine(runner)
    each.start(outbox.deliver)
    each.add(request("long", max_tokens=40))
    each.add(request("short", max_tokens=2))
    added.set()
    outbox.wait_for_end("short", "long")
    each.stop()
    ends = [o.request_id for o in outbox.outputs if o.finish_reason]
    assert ends == ["short", "long"]
    sizes = [len(step.chunks) for step in runner.steps]
    assert max(sizes) == 2 and sizes[-1] == 1


def test_an_abort_frees_the_request_before_the_next_step() -> None:
    running, aborted = threading.Event(), threading.Event()

    def hold(step: Step) -> None:
        running.set()
        assert aborted.wait(TIMEOUT_S)

    runner, outbox = ScriptedRunner(before=hold), Outbox()
    each = engine(runner)
    each.start(outbox.deliver)
    each.add(request("a", max_tokens=50))
    assert running.wait(TIMEOUT_S)
    each.abort("a")
    each.abort("a")
    each.abort("unknown")
    aborted.set()
    each.add(request("b"))
    outbox.wait_for_end("b")
    each.stop()
    with_a = [
        step for step in runner.steps if any(c.sequence.request_id == "a" for c in step.chunks)
    ]
    assert len(with_a) == 1
    each.check_idle()


def test_a_full_queue_refuses_and_keeps_nothing() -> None:
    each = engine(ScriptedRunner(), max_queued=1)
    for number in range(5):
        each.add(request(str(number)))
    with pytest.raises(QueueFullError):
        each.add(request("one too many"))
    assert each.num_unfinished == 5


def test_a_prompt_as_long_as_the_context_is_refused_at_admission() -> None:
    each = engine(ScriptedRunner())
    with pytest.raises(ContextLengthError, match="maximum context length is 64"):
        each.add(request("a", length=64))
    assert each.num_unfinished == 0


def test_stopping_ends_what_still_runs_with_an_error() -> None:
    running = threading.Event()
    each, outbox = engine(ScriptedRunner(before=lambda step: running.set())), Outbox()
    each.start(outbox.deliver)
    each.add(request("a", length=3, max_tokens=60))
    assert running.wait(TIMEOUT_S)
    each.stop()
    outbox.wait_for_end("a")
    assert not each._thread.is_alive()
    each.check_idle()


class Grammar:
    def __init__(self) -> None:
        self.accepted: list[int] = []

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        bitmask[:] = -1

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


def test_a_grammar_hears_every_token_of_its_request_alone() -> None:
    each, grammar = engine(ScriptedRunner()), Grammar()
    each.add(replace(request("bound"), mask=grammar))
    each.add(request("free", max_tokens=9))
    while each.num_unfinished:
        each.step()
    assert grammar.accepted == [0, 1, 2]


def test_stats_tell_what_is_held_and_what_was_counted() -> None:
    """Five equal prompts of five tokens, four rows: all but the first share its block of four."""
    each = engine(ScriptedRunner())
    sequences = [request(str(number), length=5, max_tokens=2) for number in range(5)]
    for sequence in sequences:
        each.add(sequence)
    before = each.stats()
    assert (before.num_running, before.num_waiting, before.kv_usage) == (0, 5, 0)
    each.step()
    assert (each.stats().num_running, each.stats().num_waiting) == (1, 4)
    assert each.stats().kv_usage == 2 / 64
    assert (each.stats().prefix_queries, each.stats().prefix_hits) == (5, 0)
    while each.num_unfinished:
        each.step()
    assert each.stats() == replace(before, num_waiting=0, prefix_queries=25, prefix_hits=16)
    started = [sequence.started for sequence in sequences]
    assert None not in started
    assert started == sorted(started)  # type: ignore[type-var]


# The queue -------------------------------------------------------------------------------------


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def run(each: Engine, steps: int) -> list[StepOutput]:
    return [output for _ in range(steps) for output in each.step()]


def test_what_waits_too_long_without_having_run_is_given_up() -> None:
    clock = Clock()
    each = engine(ScriptedRunner(), clock=clock)
    for number in range(4):  # all rows, for long
        each.add(request(str(number), max_tokens=40, token=number))
    each.step()
    each.add(request("first", token=10))
    clock.now += 1
    each.add(request("second", token=11))
    clock.now += QUEUE_S - 1
    assert all(output.error is None for output in run(each, 3))
    clock.now += 0.5
    ended = [output for output in run(each, 3) if output.finish_reason]
    assert [output.request_id for output in ended] == ["first"]
    assert isinstance(ended[0].error, UnavailableError)
    assert (ended[0].error.code, ended[0].error.headers) == (
        "server_is_overloaded",
        {"retry-after": "2"},
    )
    ended = [output for output in run(each, 40) if output.finish_reason]
    assert [output.finish_reason for output in ended] == [FinishReason.LENGTH] * 5
    each.check_idle()


def test_what_was_preempted_may_wait_for_as_long_as_it_takes() -> None:
    clock = Clock()
    each = engine(ScriptedRunner(), num_blocks=16, clock=clock)
    for number in range(2):
        each.add(request(str(number), length=20, max_tokens=30, token=number))
    outputs = run(each, 3)
    assert len(each.scheduler.running) == 2
    while each.num_unfinished:
        outputs += each.step()
        clock.now += 2 * QUEUE_S
    assert each.scheduler.num_preemptions
    assert [output.error for output in outputs] == [None] * 60


def test_what_waits_for_its_own_prompt_to_be_computed_by_a_twin_is_not_in_the_queue() -> None:
    clock = Clock()
    each = engine(ScriptedRunner(), clock=clock)
    for name in ("one", "twin"):
        each.add(request(name, length=40))
    outputs = []
    while each.num_unfinished:
        outputs += each.step()
        clock.now += 2 * QUEUE_S
    assert [output.error for output in outputs] == [None] * 6
