"""Where the scheduler's budgets and rows just suffice, and what it keeps of who has left."""

import gc
import weakref
from dataclasses import replace

from litevl.engine.scheduler import Scheduler
from litevl.sequence import Sequence, Step
from test_scheduler import MAX_ENCODER, one_step, run, scheduler, sequence


def lengths(step: Step) -> list[tuple[str, int]]:
    return [(chunk.sequence.request_id, chunk.length) for chunk in step.chunks]


def added(each: Scheduler, *sequences: Sequence) -> Scheduler:
    for one in sequences:
        each.add(one)
    return each


def test_one_that_waits_for_its_twin_holds_up_nobody_behind_it() -> None:
    first, twin = sequence("first", 6, text="same"), sequence("twin", 6, text="same")
    each = added(scheduler(), first, twin, sequence("other", 9))
    assert lengths(one_step(each)) == [("first", 6), ("other", 4)]


def test_a_prompt_that_needs_every_block_runs() -> None:
    assert lengths(one_step(added(scheduler(2), sequence("all", 8)))) == [("all", 8)]


def test_pictures_that_just_fill_the_encoder_budget_are_encoded_in_one_step() -> None:
    each = scheduler(100, max_num_batched_tokens=40)
    half = MAX_ENCODER // 2
    step = one_step(added(each, sequence("two", 30, (2, half), (12, half))))
    assert (len(step.encode), lengths(step)) == (2, [("two", 30)])


def test_a_picture_that_two_need_in_one_step_is_charged_to_the_encoder_budget_once() -> None:
    each = scheduler(100, max_num_batched_tokens=40)
    first, second = sequence("first", 12, (2, 6)), sequence("second", 12)
    second.prompt = replace(second.prompt, media=first.prompt.media)
    step = one_step(added(each, first, second))
    assert (len(step.encode), lengths(step)) == (1, [("first", 12), ("second", 12)])


def test_without_an_encoder_budget_of_its_own_that_of_tokens_holds() -> None:
    """Or a step would encode more at once than the memory plan has seen."""
    each = scheduler(100, max_encoder_tokens=0)
    step = one_step(added(each, sequence("two", 60, (1, 6), (8, 50))))
    assert (len(step.encode), lengths(step)) == (1, [("two", 8)])


def test_a_picture_in_several_chunks_is_held_once() -> None:
    each = scheduler(100)
    added(each, sequence("large", 60, (1, 50)))
    for _ in range(6):
        run(each, one_step(each))
    assert (each.encoder_cache.num_hits, each.encoder_cache.num_held) == (0, 0)


def test_nothing_is_kept_of_a_sequence_that_has_ended_or_left() -> None:
    each = scheduler()
    ended, aborted = sequence("ended", 6), sequence("aborted", 6)
    prompts = [weakref.ref(one.prompt.token_ids) for one in (ended, aborted)]
    run(each, one_step(added(each, ended)))
    each.finish(ended)
    each.finish(added(each, aborted).waiting[0])
    del ended, aborted
    gc.collect()
    assert [prompt() for prompt in prompts] == [None, None]


def test_what_was_found_of_a_prompt_is_counted_when_it_first_runs_and_not_again() -> None:
    each = added(scheduler(5), sequence("old", 8), sequence("new", 8))
    while not each.num_preemptions:
        run(each, one_step(each))
    (new,) = each.waiting
    started = new.started
    each.finish(each.running[0])
    run(each, one_step(each))
    assert new in each.running
    assert (each.prefix_queries, each.prefix_hits) == (16, 0)
    assert (new.num_cached, new.started) == (0, started)
