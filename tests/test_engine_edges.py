"""Where an answer meets the context's end, who is let in, and what is counted."""

from dataclasses import replace

import pytest

from litevl.engine.engine import STALL_AFTER_S, Engine
from litevl.errors import InternalError, UnavailableError
from litevl.health import Health
from litevl.sequence import FinishReason, Step
from scheduler_shadow import media_item
from test_engine import Clock, Outbox, ScriptedRunner, engine, request
from test_faults import LostDevice, has_room_for_one


def ended(each: Engine) -> list[FinishReason | None]:
    """Step to the end; why each output was the last of its request, if it was."""
    outputs = []
    while each.num_unfinished:
        outputs += [output.finish_reason for output in each.step()]
    each.check_idle()
    return outputs


def test_an_answer_ends_where_the_context_is_full() -> None:
    each = engine(ScriptedRunner())
    each.add(request("a", length=60, max_tokens=100))
    assert ended(each) == [None, None, None, FinishReason.LENGTH]


def test_each_half_of_a_failed_step_encodes_its_own_pictures_alone() -> None:
    runner = ScriptedRunner(before=has_room_for_one)
    each = engine(runner)
    for name in "AB":
        one = request(name, max_tokens=1)
        each.add(replace(one, prompt=replace(one.prompt, media=(media_item(name, [0]),))))
    assert ended(each) == [FinishReason.LENGTH] * 2
    digests = [[e.item.digest[:1] for e in step.encode] for step in runner.steps]
    assert digests == [[b"A", b"B"], [b"A"], [b"B"]]
    assert each.stats().num_divided == 1


def test_an_engine_is_not_idle_while_somebody_has_yet_to_be_taken_in() -> None:
    each = engine(ScriptedRunner())
    each.add(request("a"))
    with pytest.raises(RuntimeError, match="idle"):
        each.check_idle()


def test_who_comes_after_the_end_is_refused_though_nothing_ever_ran() -> None:
    each = engine(ScriptedRunner())
    each.stop()
    with pytest.raises(UnavailableError):
        each.add(request("late"))


def test_an_engine_that_has_worked_may_be_idle_for_as_long_as_it_takes() -> None:
    clock, outbox = Clock(), Outbox()
    each = engine(ScriptedRunner(), clock=clock)
    each.start(outbox.deliver)
    each.add(request("a"))
    outbox.wait_for_end("a")
    clock.now += 10 * STALL_AFTER_S
    assert each.health() is Health.READY
    each.stop()


def test_an_output_says_how_much_of_its_prompt_was_found() -> None:
    each = engine(ScriptedRunner())
    for name in ("first", "twin"):
        each.add(request(name, max_tokens=1))
    outputs = []
    while each.num_unfinished:
        outputs += each.step()
    assert [(o.request_id, o.num_cached_tokens) for o in outputs] == [("first", 0), ("twin", 4)]


def test_one_that_came_during_the_last_step_is_told_and_freed_as_the_others_are() -> None:
    def fail(step: Step) -> None:
        each.add(request("late"))
        raise RuntimeError("CUDA error")

    each, outbox = engine(LostDevice(before=fail)), Outbox()
    each.add(request("one"))
    each.start(outbox.deliver)
    outbox.wait_for_end("one", "late")
    each.stop()
    assert [type(output.error) for output in outbox.outputs] == [InternalError, UnavailableError]
    each.check_idle()
