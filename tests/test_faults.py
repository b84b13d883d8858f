"""Faults in the engine around a scripted runner: who fails alone, what ends it, what it says."""

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Watch
from litevl.cache import Cache
from litevl.engine.engine import STALL_AFTER_S, Engine
from litevl.errors import DeviceLostError, InternalError, UnavailableError
from litevl.health import Health
from litevl.sequence import (
    Chunk,
    ChunkOutput,
    FinishReason,
    MediaKey,
    Sequence,
    Step,
    StepOutput,
)
from scheduler_shadow import media_item
from test_engine import TIMEOUT_S, Clock, Computed, Outbox, ScriptedRunner, engine, request

EIGHT = [f"request {number}" for number in range(8)]
VICTIM = EIGHT[5]


def run_eight(runner: ScriptedRunner, *changed: Sequence) -> dict[str, list[StepOutput]]:
    """Eight requests with prompts of their own in one batch, the victim perhaps another; every
    output by request. At the end everything is free."""
    each = engine(runner, max_num_seqs=8)
    for number, name in enumerate(EIGHT):
        given = [sequence for sequence in changed if sequence.request_id == name]
        each.add(given[0] if given else request(name, length=2, max_tokens=5, token=number))
    outputs: dict[str, list[StepOutput]] = {name: [] for name in EIGHT}
    while each.num_unfinished:
        for output in each.step():
            outputs[output.request_id].append(output)
    each.check_idle()
    assert (each.stats().num_leaked, each.stats().kv_usage) == (0, 0)
    return outputs


def tokens(outputs: list[StepOutput]) -> list[int | None]:
    return [output.token_id for output in outputs]


def assert_only_the_victim_fails(
    outputs: dict[str, list[StepOutput]], error: type[Exception], num_tokens: int
) -> None:
    assert isinstance(outputs[VICTIM][-1].error, error)
    assert tokens(outputs[VICTIM]) == [*range(num_tokens), None]
    for name in set(EIGHT) - {VICTIM}:
        assert tokens(outputs[name]) == [0, 1, 2, 3, 4]
        assert outputs[name][-1].finish_reason is FinishReason.LENGTH


def fail_for(name: str, error: Exception, num_tokens: int = 0) -> Callable[[Step], None]:
    """Raise whenever a step computes this request's token of that number."""

    def before(step: Step) -> None:
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.request_id == name and len(sequence.output_token_ids) == num_tokens:
                raise error

    return before


# One request fails alone -----------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_a_step_that_fails_is_repeated_until_it_is_known_whose_fault_it_is(num_tokens: int) -> None:
    runner = ScriptedRunner(before=fail_for(VICTIM, ValueError("planted"), num_tokens))
    outputs = run_eight(runner)
    assert_only_the_victim_fails(outputs, InternalError, num_tokens)
    # Eight, four, two and one chunk, twice where a half went well; not one step for each.
    assert len(runner.steps) == 5 + 6


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_what_there_is_never_memory_for_is_turned_away_alone(num_tokens: int) -> None:
    outputs = run_eight(ScriptedRunner(before=fail_for(VICTIM, MemoryError(), num_tokens)))
    assert_only_the_victim_fails(outputs, UnavailableError, num_tokens)
    error = outputs[VICTIM][-1].error
    assert isinstance(error, UnavailableError)
    assert (error.code, error.headers) == ("server_is_overloaded", {"retry-after": "2"})


def test_steps_too_large_for_the_memory_are_made_in_parts_and_everybody_is_answered() -> None:
    def exhaust(step: Step) -> None:
        if len(step.chunks) > 2:
            raise MemoryError

    outputs = run_eight(ScriptedRunner(before=exhaust))
    assert {tuple(tokens(each)) for each in outputs.values()} == {(0, 1, 2, 3, 4)}


def has_room_for_one(step: Step) -> None:
    if len(step.chunks) > 1:
        raise MemoryError


@dataclass
class Encoder(ScriptedRunner):
    """Encodes what it is told to, once its step has not failed."""

    encoded: list[MediaKey] = field(default_factory=list)
    cache: Cache[MediaKey, object] = field(default_factory=Cache)

    def launch(self, step: Step) -> Computed:
        computed = super().launch(step)
        for each in step.encode:
            self.encoded.append(each.key)
            self.cache.put(each.key, "features", 1)
        return computed


def test_a_picture_that_the_first_half_encoded_is_not_encoded_again_by_the_second() -> None:
    runner = Encoder(before=has_room_for_one)
    each = engine(runner)
    runner.cache = each.scheduler.encoder_cache
    for number, name in enumerate(("one", "two")):
        sequence = request(name, length=6, token=number)
        each.add(replace(sequence, prompt=replace(sequence.prompt, media=(media_item("A", [3]),))))
    while each.num_unfinished:
        assert all(output.error is None for output in each.step())
    assert len(runner.steps[0].chunks) == 2 and len(runner.encoded) == 1
    each.check_idle()


class Activations:
    """What a step allocates."""


def test_what_a_failed_step_had_allocated_is_free_before_its_halves_run() -> None:
    made: list[weakref.ref[Activations]] = []

    def exhaust(step: Step) -> None:
        assert not any(each() for each in made)
        own = Activations()
        made.append(weakref.ref(own))
        if len(step.chunks) > 1:
            raise MemoryError

    outputs = run_eight(ScriptedRunner(before=exhaust))
    assert {tuple(tokens(each)) for each in outputs.values()} == {(0, 1, 2, 3, 4)}


def test_without_any_memory_every_request_is_turned_away_and_the_engine_lives() -> None:
    def exhaust(step: Step) -> None:
        raise MemoryError

    each, outbox = engine(ScriptedRunner(before=exhaust)), Outbox()
    each.start(outbox.deliver)
    for number in range(10):
        each.add(request(str(number)))
        outbox.wait_for_end(str(number))
        assert isinstance(outbox.of(str(number))[0].error, UnavailableError)
    assert each.health() is Health.READY
    each.stop()


@dataclass
class Spoiler(ScriptedRunner):
    """Gives the victim's third token without usable logits."""

    def _computed(self, chunk: Chunk) -> ChunkOutput:
        sequence = chunk.sequence
        is_spoilt = sequence.request_id == VICTIM and len(sequence.output_token_ids) == 2
        return replace(super()._computed(chunk), is_valid=not is_spoilt)


def test_a_row_without_usable_logits_ends_its_request_alone() -> None:
    assert_only_the_victim_fails(run_eight(Spoiler()), InternalError, 2)


@dataclass
class Grammar:
    """A grammar whose own code fails after some tokens."""

    accepted: list[int] = field(default_factory=list)
    fails_at: int = 2

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        """Everything is allowed."""

    def accept(self, token_id: int) -> None:
        if len(self.accepted) == self.fails_at:
            raise RuntimeError("planted")
        self.accepted.append(token_id)


def test_a_grammar_that_breaks_ends_its_request_alone() -> None:
    victim = replace(request(VICTIM, length=2, max_tokens=5, token=5), mask=Grammar())
    assert_only_the_victim_fails(run_eight(ScriptedRunner(), victim), InternalError, 2)


def test_a_stop_check_that_breaks_ends_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Engine._finish_reason

    def broken(each: Engine, sequence: Sequence, token_id: int) -> FinishReason | None:
        if sequence.request_id == VICTIM and token_id == 1:
            raise RuntimeError("planted")
        return check(each, sequence, token_id)

    monkeypatch.setattr(Engine, "_finish_reason", broken)
    assert_only_the_victim_fails(run_eight(ScriptedRunner()), InternalError, 1)


def test_the_log_of_a_failure_tells_where_and_not_what(caplog: pytest.LogCaptureFixture) -> None:
    run_eight(ScriptedRunner(before=fail_for(VICTIM, ValueError("what a caller wrote"))))
    (record,) = caplog.records
    assert record.getMessage() == "a sequence of 2 tokens failed: ValueError"
    assert "in before" in record.frames  # type: ignore[attr-defined]
    assert "what a caller wrote" not in str(vars(record))


# What ends the engine --------------------------------------------------------------------------


def test_requests_that_fail_again_and_again_do_not_end_it() -> None:
    each = engine(ScriptedRunner(before=fail_for("bad", ValueError("planted"))))
    for _ in range(100):
        each.add(request("bad"))
        (output,) = each.step()
        assert isinstance(output.error, InternalError)
    each.add(request("good", max_tokens=1))
    assert tokens(each.step()) == [0]
    each.check_idle()


@dataclass
class LostDevice(ScriptedRunner):
    """Where every failure is the device's."""

    def check_device(self) -> None:
        raise DeviceLostError("AcceleratorError")


@dataclass
class Fatal:
    """An engine whose thread meets `error` in a step of two requests, while a third one waits."""

    error: BaseException
    outbox: Outbox = field(default_factory=Outbox)

    def run(self) -> Engine:
        each = engine(LostDevice(before=self._before), num_blocks=16)
        for number, name in enumerate(("one", "two", "waits")):
            each.add(request(name, length=28, token=number))
        each.start(self.outbox.deliver)
        self.outbox.wait_for_end("one", "two", "waits")
        return each

    def _before(self, step: Step) -> None:
        names = {chunk.sequence.request_id for chunk in step.chunks}
        if names == {"one", "two"}:
            raise self.error

    def errors(self) -> list[type]:
        return [type(self.outbox.of(name)[-1].error) for name in ("one", "two", "waits")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error"), SystemExit(), KeyboardInterrupt()], ids=repr
)
def test_a_lost_device_or_a_killed_thread_fails_what_runs_and_sends_the_rest_elsewhere(
    error: BaseException,
) -> None:
    fatal = Fatal(error)
    each = fatal.run()
    assert each.health() is Health.DEAD
    assert fatal.errors() == [InternalError, InternalError, UnavailableError]
    with pytest.raises(UnavailableError):
        each.add(request("late"))
    each._thread.join(TIMEOUT_S)
    assert not each._thread.is_alive()
    each.check_idle()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_everybody_is_told_of_the_end_though_freeing_an_aborted_request_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def abort(step: Step) -> None:
        each.abort("one")
        raise RuntimeError("CUDA error")

    def broken(*args: object, **options: object) -> None:
        raise ValueError("broken state")

    each, outbox = engine(LostDevice(before=abort)), Outbox()
    monkeypatch.setattr(each.scheduler, "finish", broken)
    for name in ("one", "two"):
        each.add(request(name))
    each.start(outbox.deliver)
    outbox.wait_for_end("one", "two")
    each._thread.join(TIMEOUT_S)  # what it dies of is this test's


def test_nobody_is_let_in_once_the_end_is_being_told() -> None:
    refused: list[Exception] = []

    def deliver(outputs: list[StepOutput]) -> None:
        with pytest.raises(UnavailableError) as caught:
            each.add(request("late"))
        refused.append(caught.value)

    def fail(step: Step) -> None:
        raise RuntimeError("CUDA error")

    each = engine(LostDevice(before=fail))
    each.add(request("one"))
    each.start(deliver)
    each._thread.join(TIMEOUT_S)
    assert refused and not each.num_unfinished


# Health ----------------------------------------------------------------------------------------


def test_a_long_prompt_and_a_full_house_stay_green() -> None:
    clock = Clock()
    seen: list[Health] = []

    def slow(step: Step) -> None:
        clock.now += STALL_AFTER_S
        seen.append(each.health())
        each.beat()  # as a model's layers do
        clock.now += STALL_AFTER_S
        seen.append(each.health())

    runner = ScriptedRunner()
    each = engine(runner, clock=clock)
    outbox = Outbox()
    each.start(outbox.deliver)
    runner.before = slow
    for number in range(8):  # twice as many as there are places, each prompt in three chunks
        each.add(request(str(number), length=40, token=number))
    outbox.wait_for_end("0", "1", "2", "3")
    each.stop()
    assert set(seen) == {Health.READY}


def test_a_step_without_a_heartbeat_turns_red_and_green_again_when_it_ends() -> None:
    clock, entered, may_go = Clock(), threading.Event(), threading.Event()

    def hang(step: Step) -> None:
        entered.set()
        assert may_go.wait(TIMEOUT_S)

    each, outbox = engine(ScriptedRunner(before=hang), clock=clock), Outbox()
    each.start(outbox.deliver)
    assert each.health() is Health.READY
    each.add(request("a", max_tokens=1))
    assert entered.wait(TIMEOUT_S)
    clock.now += STALL_AFTER_S
    assert each.health() is Health.READY
    clock.now += 0.1
    assert each.health() is Health.STALLED
    may_go.set()
    outbox.wait_for_end("a")
    each.stop()


def test_an_idle_engine_needs_no_heartbeat() -> None:
    clock = Clock()
    each = engine(ScriptedRunner(), clock=clock)
    each.start(lambda outputs: None)
    each.beat()
    clock.now += 10 * STALL_AFTER_S
    assert each.health() is Health.READY
    each.stop()


# Leaks -----------------------------------------------------------------------------------------


def test_what_is_held_at_idle_is_counted_once(
    caplog: pytest.LogCaptureFixture, nothing_of_a_caller_is_told_and_nothing_leaks: Watch
) -> None:
    each = engine(ScriptedRunner())
    each.scheduler.pool.allocate(2)
    for _ in range(2):
        each.add(request("a"))
        while each.num_unfinished:
            each.step()
        assert each.stats().num_leaked == 2
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    watch = nothing_of_a_caller_is_told_and_nothing_leaks
    assert len(watch.found) == 1  # any other test would fail by it
    watch.found.clear()
    with pytest.raises(RuntimeError, match=r"\(2, 0, 0\)"):
        each.check_idle()


def test_one_that_was_preempted_can_leave_and_the_other_goes_on() -> None:
    each = engine(ScriptedRunner(), num_blocks=16)
    for number in range(2):
        each.add(request(str(number), length=20, max_tokens=30, token=number))
    outputs: list[StepOutput] = []
    while not each.scheduler.num_preemptions:
        outputs += each.step()
    (preempted,) = each.scheduler.waiting
    each.abort(preempted.request_id)
    while each.num_unfinished:
        outputs += each.step()
    each.check_idle()
    stayed = [output for output in outputs if output.request_id != preempted.request_id]
    assert tokens(stayed) == list(range(30))
