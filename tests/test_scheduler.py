"""The scheduler's promises one by one; `test_scheduler_machine.py` drives them all at once."""

import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from litevl.cache import Cache
from litevl.engine.blocks import BlockPool, Chain
from litevl.engine.scheduler import Scheduler
from litevl.sequence import (
    MediaItem,
    MediaKey,
    Prompt,
    SamplingParams,
    Sequence,
    SequenceStatus,
    Step,
)

BLOCKS, BLOCK_SIZE, MAX_SEQS, MAX_TOKENS, MAX_ENCODER = 12, 4, 3, 10, 8


def media_item(start: int, length: int) -> MediaItem:
    return MediaItem(
        kind="image",
        digest=uuid.uuid4().bytes,
        token_indices=np.arange(start, start + length),
        pixels=np.zeros((0, 0), dtype=np.uint8),
        mean=(0.0,),
        std=(1.0,),
        grid=(1, 2, 2 * length),
    )


def sequence(
    name: str, length: int, *media: tuple[int, int], text: str | None = None, scope: bytes = b""
) -> Sequence:
    """A sequence whose prompt is its own, unless `text` names one to share."""
    rng = np.random.default_rng(list((text or name).encode()))
    prompt = Prompt(
        token_ids=rng.integers(0, 10**9, length),
        positions=np.zeros((3, length), dtype=np.int64),
        position_delta=0,
        media=tuple(media_item(*each) for each in media),
    )
    params = SamplingParams(max_tokens=1000)
    return Sequence(request_id=name, prompt=prompt, params=params, scope=scope)


def scheduler(num_blocks: int = BLOCKS, **changes: int) -> Scheduler:
    limits = {
        "max_num_seqs": MAX_SEQS,
        "max_num_batched_tokens": MAX_TOKENS,
        "max_encoder_tokens": MAX_ENCODER,
    }
    return Scheduler(BlockPool(num_blocks, BLOCK_SIZE), Cache(), **(limits | changes))


def run(each: Scheduler, step: Step) -> None:
    """What the engine does with a step: encode, compute, append a token where one was sampled."""
    for encode in step.encode:
        each.encoder_cache.put(encode.key, "features", encode.item.num_tokens)
    for chunk in step.chunks:
        for item in chunk.sequence.prompt.media:
            touches = item.token_indices[0] < chunk.end and item.token_indices[-1] >= chunk.start
            assert not touches or chunk.sequence.media_key(item) in each.encoder_cache, (
                "a chunk runs without its features"
            )
    sampled = [chunk.sequence for chunk in step.chunks if chunk.is_last]
    for chunk in step.chunks:
        each.complete(chunk)
    for one in sampled:
        one.output_token_ids.append(0)


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


def test_nothing_is_encoded_for_a_sequence_that_gets_no_tokens() -> None:
    each = scheduler(100)
    seen = finished(each, sequence("seen", 8, (1, 6)))  # whose features nobody keeps
    again = Sequence(request_id="again", prompt=seen.prompt, params=seen.params)
    each.add(sequence("first", 60, (1, 8), (9, 1)))
    each.add(again)
    run(each, one_step(each))
    assert (again.status, again.num_computed) == (SequenceStatus.RUNNING, 4), "amid its picture"
    step = one_step(each)  # the first takes all tokens, and leaves room in the encoder
    assert [(chunk.sequence.request_id, chunk.length) for chunk in step.chunks] == [("first", 10)]
    assert len(step.encode) == 1 and not again.held_media


def test_a_picture_larger_than_both_budgets_still_runs_alone_and_in_chunks() -> None:
    each = scheduler(100)
    each.add(sequence("large", 60, (1, 50)))
    encoded = []
    for _ in range(6):
        step = one_step(each)
        encoded.append(len(step.encode))
        run(each, step)
    assert encoded == [1, 0, 0, 0, 0, 0]
    assert each.encoder_cache.num_held == 0, "features are held beyond the picture"


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
    (chunk,) = one_step(each).chunks
    assert chunk.sequence is new and chunk.end == len(new)


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


def finished(each: Scheduler, one: Sequence) -> Sequence:
    """Run one sequence to its first token and finish it."""
    each.add(one)
    while not one.output_token_ids:
        run(each, one_step(each))
    each.finish(one)
    return one


def test_a_prompt_seen_before_is_computed_from_its_last_block_on_and_never_not_at_all() -> None:
    each = scheduler(100)
    finished(each, sequence("first", 8, text="same"))
    again = finished(each, sequence("again", 8, text="same"))
    assert again.num_cached == 4, "the block of the last token must run"
    longer = finished(each, sequence("longer", 9, text="same"))
    assert longer.num_cached == 8


def test_generated_tokens_are_shared_with_the_next_turn() -> None:
    each = scheduler(100)
    first = sequence("first", 6)
    each.add(first)
    while len(first) < 9:
        run(each, one_step(each))
    each.finish(first)
    ids = np.concatenate([first.prompt.token_ids, first.output_token_ids, [7, 7, 7, 7]])
    turn = sequence("turn", len(ids))
    turn.prompt = replace(turn.prompt, token_ids=ids)
    assert finished(each, turn).num_cached == 8


def test_no_other_scope_and_no_other_picture_shares_a_block() -> None:
    each = scheduler(100, max_num_batched_tokens=40)
    first = finished(each, sequence("first", 20, (4, 8), text="same", scope=b"one"))
    other_scope = sequence("second", 20, text="same", scope=b"two")
    other_scope.prompt = first.prompt
    assert finished(each, other_scope).num_cached == 0
    other_picture = sequence("third", 20, (4, 8), text="same", scope=b"one")
    assert finished(each, other_picture).num_cached == 4, "only what lies before the picture"
    same = sequence("fourth", 20, text="same", scope=b"one")
    same.prompt = first.prompt
    assert finished(each, same).num_cached == 16


def test_many_answers_to_one_prompt_compute_it_once() -> None:
    each = scheduler(100, max_num_seqs=8, max_num_batched_tokens=40)
    forks = [sequence(str(i), 30, text="same") for i in range(5)]
    for fork in forks:
        each.add(fork)
    step = one_step(each)
    assert [chunk.sequence for chunk in step.chunks] == forks[:1]
    run(each, step)
    step = one_step(each)
    assert [chunk.length for chunk in step.chunks] == [1, 2, 2, 2, 2]
    shared = set(forks[0].blocks[:7])
    assert all(set(fork.blocks[:7]) == shared for fork in forks)
    assert len({fork.blocks[7] for fork in forks}) == 5, "each writes into a block of its own"
    run(each, step)
    for fork in forks:
        each.finish(fork)
    assert each.pool.num_free == 100


def test_a_prompt_that_waited_for_another_runs_when_that_is_aborted() -> None:
    each = scheduler(100)
    first, second = sequence("first", 30, text="same"), sequence("second", 30, text="same")
    each.add(first)
    each.add(second)
    run(each, one_step(each))
    each.finish(first)
    assert one_step(each).chunks[0].sequence is second
    assert second.num_cached == 8, "what the first had computed is used"


def test_blocks_that_nobody_holds_are_reused_the_longest_unused_first() -> None:
    each = scheduler(8)
    finished(each, sequence("old", 12, text="old"))
    finished(each, sequence("new", 12, text="new"))
    finished(each, sequence("large", 16))
    assert finished(each, sequence("new again", 12, text="new")).num_cached == 8
    assert each.pool.num_free == 8


def test_what_a_spoiled_sequence_computed_is_offered_to_nobody() -> None:
    each = scheduler(100)
    first = sequence("first", 10, text="same")
    each.add(first)
    run(each, one_step(each))
    each.finish(first, is_spoiled=True)
    assert finished(each, sequence("again", 10, text="same")).num_cached == 0


def test_a_picture_seen_before_or_beside_is_encoded_once() -> None:
    each = scheduler(100, max_num_batched_tokens=60)
    each.encoder_cache = Cache(8)
    first, second = sequence("first", 12, (2, 6)), sequence("second", 12, (4, 6))
    shared = replace(second.prompt.media[0], digest=first.prompt.media[0].digest)
    second.prompt = replace(second.prompt, media=(shared,))
    each.add(first)
    each.add(second)
    step = one_step(each)
    assert (len(step.chunks), len(step.encode)) == (2, 1)
    run(each, step)
    third = sequence("third", 12, (1, 6))
    third.prompt = replace(third.prompt, media=(replace(shared, token_indices=np.arange(1, 7)),))
    each.add(third)
    assert not one_step(each).encode
    assert each.encoder_cache.num_hits == 2  # the second's, beside the first, and the third's


def test_features_that_nobody_holds_make_room_the_longest_unused_first() -> None:
    cache: Cache[MediaKey, str] = Cache(12)
    a, b, c, d = ((b"", name) for name in (b"a", b"b", b"c", b"d"))
    for key in (a, b, c):
        cache.hold(key)
        cache.put(key, "features", 5)
    assert (len(cache), cache.used) == (3, 15), "what is held stays, beyond the capacity too"
    cache.release(c)
    assert c not in cache
    cache.get(a)
    cache.release(b)
    cache.release(a)
    cache.put(d, "features", 5)
    assert (a in cache, b in cache, d in cache, cache.num_held) == (True, False, True, 0)
    cache.clear()
    assert (len(cache), cache.used) == (0, 0)


class Watched:
    """A picture that counts how often its placeholders are looked at."""

    digest = b"picture"

    def __init__(self, start: int, length: int) -> None:
        self.num_looks = 0
        self._indices = np.arange(start, start + length)

    @property
    def token_indices(self) -> NDArray[np.int64]:
        self.num_looks += 1
        return self._indices


def test_naming_blocks_looks_at_each_picture_once_however_many_blocks_there_are() -> None:
    one = sequence("a", 1000)
    media: Any = tuple(Watched(start, 15) for start in range(0, 1000, 20))
    chain = Chain(replace(one, prompt=replace(one.prompt, media=media)), BLOCK_SIZE)
    assert len(set(chain.names(250))) == 250
    assert {each.num_looks for each in media} == {1}


def test_of_a_chain_that_is_given_up_the_end_is_reused_before_the_beginning() -> None:
    pool = BlockPool(3, BLOCK_SIZE)
    blocks = pool.allocate(3)
    for block in blocks:
        pool.register(block, bytes([block]))
    pool.free(blocks)
    assert [pool.allocate(1)[0] for _ in blocks] == blocks[::-1]
