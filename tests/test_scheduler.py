"""The scheduler's promises, driven by hypothesis: nothing leaks, nothing starves, budgets hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from litevl.engine.blocks import BlockPool
from litevl.engine.encoder_cache import EncoderCache
from litevl.engine.scheduler import Scheduler
from litevl.sequence import MediaItem, Prompt, SamplingParams, Sequence, SequenceStatus, Step

BLOCKS, BLOCK_SIZE, MAX_SEQS, MAX_TOKENS, MAX_ENCODER = 12, 4, 3, 10, 8


def media_item(start: int, length: int) -> MediaItem:
    return MediaItem(
        kind="image",
        digest=b"",
        token_indices=np.arange(start, start + length),
        pixels=np.zeros((0, 0), dtype=np.float32),
        grid=(1, 2, 2 * length),
    )


def sequence(name: str, length: int, *media: tuple[int, int]) -> Sequence:
    prompt = Prompt(
        token_ids=np.zeros(length, dtype=np.int64),
        positions=np.zeros((3, length), dtype=np.int64),
        position_delta=0,
        media=tuple(media_item(*each) for each in media),
    )
    return Sequence(request_id=name, prompt=prompt, params=SamplingParams(max_tokens=1000))


def scheduler(num_blocks: int = BLOCKS, **changes: int) -> Scheduler:
    limits = {
        "max_num_seqs": MAX_SEQS,
        "max_num_batched_tokens": MAX_TOKENS,
        "max_encoder_tokens": MAX_ENCODER,
    }
    return Scheduler(BlockPool(num_blocks, BLOCK_SIZE), EncoderCache(), **(limits | changes))


def run(each: Scheduler, step: Step) -> None:
    """What the engine does with a step: encode, compute, append a token where one was sampled."""
    for item in step.encode:
        each.encoder_cache.put(item, "features")
    for chunk in step.chunks:
        for item in chunk.sequence.prompt.media:
            touches = item.token_indices[0] < chunk.end and item.token_indices[-1] >= chunk.start
            assert not touches or item in each.encoder_cache, "a chunk runs without its features"
    sampled = [chunk.sequence for chunk in step.chunks if chunk.is_last]
    for chunk in step.chunks:
        each.complete(chunk)
    for one in sampled:
        one.output_token_ids.append(0)


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of add, step, finish and abort keeps the invariants; at idle all is free."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = scheduler()
        self.alive: list[Sequence] = []
        self.count = 0

    @rule(
        length=st.integers(1, BLOCKS * BLOCK_SIZE - 1),
        start=st.integers(0, 20),
        size=st.integers(1, 20),
    )
    def add(self, length: int, start: int, size: int) -> None:
        media = [(start, size)] if start + size < length else []
        self.count += 1
        new = sequence(str(self.count), length, *media)
        self.scheduler.add(new)
        self.alive.append(new)

    @rule()
    @precondition(lambda self: self.alive)
    def step(self) -> None:
        step = self.scheduler.schedule()
        assert step is not None, "there is work, yet nothing runs"
        assert 0 < step.num_tokens <= MAX_TOKENS
        cost = sum(item.num_tokens for item in step.encode)
        assert cost <= MAX_ENCODER or len(step.encode) == 1
        run(self.scheduler, step)
        for full in [one for one in self.alive if len(one) == BLOCKS * BLOCK_SIZE]:
            self.end(full)

    @rule(data=st.data())
    @precondition(lambda self: self.alive)
    def abort(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.alive)))

    def end(self, one: Sequence) -> None:
        self.scheduler.finish(one)
        self.scheduler.finish(one)
        self.alive.remove(one)

    @invariant()
    def every_block_is_held_once(self) -> None:
        held = [block for one in self.scheduler.running for block in one.blocks]
        assert len(held) == len(set(held))
        assert len(held) + self.scheduler.pool.num_free == BLOCKS

    @invariant()
    def every_sequence_is_in_one_state(self) -> None:
        running, waiting = self.scheduler.running, list(self.scheduler.waiting)
        assert sorted(map(id, running + waiting)) == sorted(map(id, self.alive))
        assert all(one.status is SequenceStatus.RUNNING and one.row >= 0 for one in running)
        assert all(one.status is SequenceStatus.WAITING and not one.blocks for one in waiting)
        assert len({one.row for one in running}) == len(running) <= MAX_SEQS

    @invariant()
    def idle_means_free(self) -> None:
        if not self.alive:
            assert self.scheduler.pool.num_free == BLOCKS
            assert len(self.scheduler.encoder_cache) == 0


TestSchedulerMachine = SchedulerMachine.TestCase


def test_decodes_come_first_and_share_a_step_with_a_chunk_of_a_prompt() -> None:
    each = scheduler(100)
    old, new = sequence("old", 3), sequence("new", 50)
    each.add(old)
    run(each, one_step(each))
    each.add(new)
    step = one_step(each)
    assert [(chunk.sequence, chunk.length) for chunk in step.chunks] == [(old, 1), (new, 9)]


def test_a_chunk_ends_before_a_picture_that_the_encoder_budget_cannot_take() -> None:
    each = scheduler(100, max_num_batched_tokens=40)
    each.add(sequence("pictures", 30, (2, 6), (12, 6)))
    step = one_step(each)
    assert (step.chunks[0].length, len(step.encode)) == (12, 1)


def test_a_picture_larger_than_both_budgets_still_runs_alone_and_in_chunks() -> None:
    each = scheduler(100)
    each.add(sequence("large", 60, (1, 50)))
    encoded = []
    for _ in range(6):
        step = one_step(each)
        encoded.append(len(step.encode))
        run(each, step)
    assert encoded == [1, 0, 0, 0, 0, 0]
    assert len(each.encoder_cache) == 0, "features outlive the picture"


@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=6), wanted=st.integers(1, 8))
def test_every_sequence_gets_its_tokens_however_scarce_the_blocks(
    lengths: list[int], wanted: int
) -> None:
    each = scheduler()
    alive = [sequence(str(i), length) for i, length in enumerate(lengths)]
    for one in alive:
        each.add(one)
    for _ in range(2000):
        run(each, one_step(each))
        for done in [one for one in alive if len(one.output_token_ids) >= wanted]:
            each.finish(done)
            alive.remove(done)
        if not alive:
            break
    assert not alive
    assert each.pool.num_free == BLOCKS


def test_the_newest_sequence_is_preempted_and_keeps_its_tokens() -> None:
    each = scheduler(5)
    old, new = sequence("old", 8), sequence("new", 8)
    each.add(old)
    each.add(new)
    while not each.num_preemptions:
        run(each, one_step(each))
    assert (old.status, new.status) == (SequenceStatus.RUNNING, SequenceStatus.WAITING)
    assert new.num_computed == 0 and new.output_token_ids
    each.finish(old)
    step = one_step(each)
    assert step.chunks[0].sequence is new and step.chunks[0].length == len(new)


def test_a_block_freed_twice_is_noticed() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.free(blocks)


def one_step(each: Scheduler) -> Step:
    step = each.schedule()
    assert step is not None
    return step
