"""Scheduler, block pool and encoder cache against a shadow of what every block and feature holds.

A hypothesis state machine adds, steps, aborts and breaks in any order, in pools so small that
blocks run out. Wherever a step would write keys and values, the machine writes the number of the
history that decides them, and later compares: so it knows whether a shared block holds what it
claims. `FUZZ_RUNS` and `FUZZ_STEPS` in the environment ask for more (`make fuzz`).
"""

import os
import sys
from collections import Counter
from itertools import pairwise
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from litevl.cache import Cache
from litevl.engine.blocks import BlockPool
from litevl.engine.scheduler import Scheduler
from litevl.sequence import (
    Chunk,
    MediaKey,
    SamplingParams,
    Sequence,
    SequenceStatus,
    Step,
)
from scheduler_shadow import SPELLING, Client, Histories, Limits, spell

RUNS = int(os.environ.get("FUZZ_RUNS", "2000"))
STEPS = int(os.environ.get("FUZZ_STEPS", "12"))

UNKNOWN = -1  # what a failed step leaves in a block

# What the runs must have met, lest they prove nothing.
MILESTONES = {
    "aborted under way",
    "drained",
    "encoded what is larger than the budget",
    "feature found",
    "overtaken",
    "preempted",
    "prefix found",
    "prefix found that ends inside a picture",
    "prefix of generated tokens found",
    "shared by running sequences",
    "step failed",
    "taken again after preemption",
}


LIMITS = st.builds(
    Limits,
    num_blocks=st.integers(3, 12),
    block_size=st.sampled_from((2, 4)),
    max_seqs=st.integers(1, 4),
    max_tokens=st.integers(4, 24),
    max_encoder_tokens=st.integers(2, 14),
    capacity=st.sampled_from((0, 8, 30)),
)
SCOPES = st.sampled_from((b"one", b"two"))
TRUNKS = st.sampled_from(("", "tXa", "tYX", "Ztb", "tttt"))
WORDS = st.text("abtXYZ", min_size=1, max_size=5)
WANTED = st.integers(1, 10)
PICKS = st.integers(0, 7)


class SchedulerMachine(RuleBasedStateMachine):
    """Clients come and go; after every move the scheduler's promises are checked."""

    reached: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.histories = Histories()
        self.clients: dict[Sequence, Client] = {}  # those that are not finished
        self.asked: list[tuple[str, Sequence]] = []

    @initialize(limits=LIMITS)
    def begin(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks, limits.block_size)
        self.cache: Cache[MediaKey, MediaKey] = Cache(limits.capacity)
        self.scheduler = Scheduler(
            self.pool,
            self.cache,
            max_num_seqs=limits.max_seqs,
            max_num_batched_tokens=limits.max_tokens,
            max_encoder_tokens=limits.max_encoder_tokens,
        )
        self.cells = [[UNKNOWN] * limits.block_size for _ in range(limits.num_blocks)]
        self.spoiled: set[int] = set()  # blocks with bad contents

    # Moves -------------------------------------------------------------------------------------

    @rule(scope=SCOPES, trunk=TRUNKS, words=WORDS, copies=st.integers(1, 4), wanted=WANTED)
    def ask(self, scope: bytes, trunk: str, words: str, copies: int, wanted: int) -> None:
        """A request; several copies are the `n` answers that one client wants."""
        for salt in range(copies):
            self._add(scope, trunk + words, salt % 2, wanted)

    @precondition(lambda self: self.asked)
    @rule(scope=SCOPES, pick=PICKS, words=WORDS, wanted=WANTED)
    def ask_again(self, scope: bytes, pick: int, words: str, wanted: int) -> None:
        """The next turn of an earlier conversation, perhaps by somebody else."""
        letters, earlier = self.asked[-1 - pick % len(self.asked)]
        answer = "".join(" ab"[token] for token in earlier.output_token_ids)
        self._add(scope, letters + answer + words, pick % 2, wanted)

    @precondition(lambda self: self.clients)
    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            if self.clients:
                step = self._schedule()
                self._launch(step)
                self._collect(step)

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS)
    def abort(self, pick: int) -> None:
        self._end(self._pick(pick))

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS)
    def step_under_which_one_is_aborted(self, pick: int) -> None:
        step = self._schedule()
        self._launch(step)
        victim = self._pick(pick)
        self.reached["aborted under way"] += any(c.sequence is victim for c in step.chunks)
        self._end(victim)
        self.check()
        self._collect(step)

    @precondition(lambda self: self.clients)
    @rule(pick=PICKS)
    def step_with_a_bad_chunk(self, pick: int) -> None:
        """One ends in NaN: what its sequence computed must not serve anybody."""
        step = self._schedule()
        self._launch(step)
        if step.chunks:
            victim = step.chunks[pick % len(step.chunks)].sequence
            self.spoiled.update(victim.blocks)
            self._end(victim, is_spoiled=True)
            self.check()
        self._collect(step)

    @precondition(lambda self: self.clients)
    @rule(has_encoded=st.booleans(), is_out_of_memory=st.booleans())
    def step_that_fails(self, has_encoded: bool, is_out_of_memory: bool) -> None:
        """Its sequences end, as in the engine; what it has written is not to be relied on."""
        step = self._schedule()
        if has_encoded:
            self._encode(step)
        if is_out_of_memory:
            self.cache.clear()
        for chunk in step.chunks:
            self._write(chunk, [UNKNOWN] * chunk.length)
        for chunk in step.chunks:
            self._end(chunk.sequence)
        self.reached["step failed"] += 1

    def _add(self, scope: bytes, letters: str, salt: int, wanted: int) -> None:
        while sum(len(SPELLING[each]) for each in letters) >= self.limits.max_model_len:
            letters = letters[:-1]
        prompt = spell(letters)
        if not len(prompt):
            return
        new = Sequence(
            request_id=str(len(self.asked)),
            prompt=prompt,
            params=SamplingParams(max_tokens=wanted),
            scope=scope,
        )
        self.asked.append((letters, new))
        self.clients[new] = Client(new, letters, self.histories.of(scope, prompt), salt)
        self.scheduler.add(new)

    def _pick(self, pick: int) -> Sequence:
        return list(self.clients)[pick % len(self.clients)]

    def _end(self, sequence: Sequence, *, is_spoiled: bool = False) -> None:
        self.scheduler.finish(sequence, is_spoiled=is_spoiled)
        self.scheduler.finish(sequence)
        assert sequence.status is SequenceStatus.FINISHED
        assert not sequence.blocks and not sequence.held_media
        del self.clients[sequence]

    # What engine and runner do -----------------------------------------------------------------

    def _schedule(self) -> Step:
        ran = list(self.scheduler.running)
        decoding = [each for each in ran if is_decoding(each)]
        waited = list(self.scheduler.waiting)
        preemptions = self.scheduler.num_preemptions
        step = self.scheduler.schedule()
        assert step is not None, "there is work, yet nothing runs"
        preempted = [each for each in ran if not is_running(each)]
        assert self.scheduler.num_preemptions - preemptions == len(preempted)
        if preempted:
            assert list(self.scheduler.waiting) == preempted + waited, "who ran comes back first"
        self._note_preempted(preempted)
        self._check_admission(waited)
        self._check_plan(step, [each for each in decoding if is_running(each)])
        self.check_states()
        self.check_blocks()
        return step

    def _launch(self, step: Step) -> None:
        self._encode(step)
        for chunk in step.chunks:
            client = self.clients[chunk.sequence]
            for item in client.touched(chunk):
                key = (chunk.sequence.scope, item.digest)
                assert self.cache.get(key) == key, "a chunk runs without its features"
            self._check_contents(client, chunk.start)
            self._write(chunk, client.histories[chunk.start : chunk.end])
        for chunk in step.chunks:
            self._check_contents(self.clients[chunk.sequence], chunk.end)

    def _encode(self, step: Step) -> None:
        for each in step.encode:
            assert each.key not in self.cache, "encoded again"
            self.cache.put(each.key, each.key, each.item.num_tokens)

    def _write(self, chunk: Chunk, contents: list[int]) -> None:
        size = self.limits.block_size
        for index, content in enumerate(contents, chunk.start):
            block = chunk.sequence.blocks[index // size]
            if index % size == 0:
                self.spoiled.discard(block)
            self.cells[block][index % size] = content

    def _collect(self, step: Step) -> None:
        for chunk in step.chunks:
            is_last = chunk.is_last
            self.scheduler.complete(chunk)
            client = self.clients.get(chunk.sequence)
            if client is None:
                continue
            client.held = [i for i in client.held if i.token_indices[-1] >= chunk.end]
            if is_last:
                self._append(client)
        self.check()

    def _append(self, client: Client) -> None:
        """Sample: equal histories and salts give equal answers, so that answers repeat too."""
        sequence = client.sequence
        number = (client.histories[-1] * 2654435761 + client.salt * 97) >> 9
        token = 1 + number % 2
        sequence.output_token_ids.append(token)
        client.histories.append(self.histories.extend(client.histories[-1], token))
        is_full = len(sequence) >= self.limits.max_model_len
        is_long = len(sequence.output_token_ids) >= sequence.params.max_tokens
        if is_full or is_long or number % 23 == 0:  # or a stop token
            self._end(sequence)

    # What must hold of a step ------------------------------------------------------------------

    def _note_preempted(self, preempted: list[Sequence]) -> None:
        for sequence in preempted:
            self.clients[sequence].held.clear()
            self.clients[sequence].was_preempted = True
        self.reached["preempted"] += len(preempted)

    def _check_admission(self, waited: list[Sequence]) -> None:
        size = self.limits.block_size
        new = [self.clients[each] for each in waited if is_running(each)]
        for client in new:
            client.known_at_start = len(client.sequence)
            num_found = client.sequence.num_computed
            assert num_found < len(client.sequence), "nothing is left to sample from"
            assert num_found % size == 0, "part of a block is shared"
            found = client.sequence.blocks[: num_found // size]
            assert self.spoiled.isdisjoint(found), "what is spoiled was found"
            self._check_contents(client, num_found)
            self._note_found(client, found)
        for client in new:
            self._check_is_computed_once(client, new)
        for index, each in enumerate(waited):
            if not is_running(each) and any(is_running(later) for later in waited[index:]):
                self._check_overtaken(self.clients[each])

    def _check_is_computed_once(self, client: Client, new: list[Client]) -> None:
        """The first block that it computes is computed by none that was admitted before it."""
        end = client.sequence.num_computed + self.limits.block_size
        if end >= client.known_at_start:
            return
        for other in new[: new.index(client)]:
            is_known = other.known_at_start >= end > other.sequence.num_computed
            assert not (is_known and client.common(other) >= end), "computed twice"

    def _check_overtaken(self, client: Client) -> None:
        """Only what a running sequence computes for it is worth waiting for."""
        size, limit = self.limits.block_size, len(client.sequence) - 1
        common = [
            (min(client.common(self.clients[other]), limit) // size * size, other.num_computed)
            for other in self.scheduler.running
        ]
        assert any(computed < end for end, computed in common), "overtaken for nothing"
        self.reached["overtaken"] += 1

    def _note_found(self, client: Client, found: list[int]) -> None:
        sequence, start = client.sequence, client.sequence.num_computed
        assert sequence.num_cached is not None
        if not client.was_preempted:
            assert sequence.num_cached == start
        inside = any(
            item.token_indices[0] < start <= item.token_indices[-1]
            for item in sequence.prompt.media
        )
        self.reached["prefix found"] += bool(found)
        self.reached["prefix found that ends inside a picture"] += inside
        self.reached["prefix of generated tokens found"] += start > len(sequence.prompt)
        self.reached["taken again after preemption"] += client.was_preempted and bool(found)
        shared = any(self.pool._holders[block] > 1 for block in found)
        self.reached["shared by running sequences"] += shared

    def _check_plan(self, step: Step, decoding: list[Sequence]) -> None:
        assert 0 < sum(chunk.length for chunk in step.chunks) <= self.limits.max_tokens
        sequences = [chunk.sequence for chunk in step.chunks]
        assert sequences[: len(decoding)] == decoding, "a decode has to wait"
        assert self.scheduler.running[0] in sequences, "the oldest has to wait"
        ages = [self.scheduler.running.index(each) for each in sequences[len(decoding) :]]
        assert all(older < newer for older, newer in pairwise(ages)), "not in order of admission"
        assert len(set(sequences)) == len(sequences)
        for chunk in step.chunks:
            assert is_running(chunk.sequence)
            assert chunk.start == chunk.sequence.num_computed
            assert chunk.length > 0 and chunk.end <= len(chunk.sequence)
        self._check_encoder_work(step)

    def _check_encoder_work(self, step: Step) -> None:
        needed: set[MediaKey] = set()
        for chunk in step.chunks:
            client = self.clients[chunk.sequence]
            items = client.touched(chunk)
            needed |= {(chunk.sequence.scope, item.digest) for item in items}
            client.held += [item for item in items if item not in client.held]
        keys = [each.key for each in step.encode]
        assert len(set(keys)) == len(keys), "encoded twice in a step"
        assert needed.issuperset(keys), "encoded for nobody"
        assert all(key in self.cache for key in needed.difference(keys)), "not encoded"
        cost = sum(each.item.num_tokens for each in step.encode)
        assert cost <= self.limits.max_encoder_tokens or len(keys) == 1
        self.reached["encoded what is larger than the budget"] += (
            cost > self.limits.max_encoder_tokens
        )
        self.reached["feature found"] += len(needed) > len(keys)

    # What must hold at all times ---------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        self.check()

    def check(self) -> None:
        self.check_states()
        self.check_blocks()
        self.check_features()
        for sequence in self.scheduler.running:
            self._check_contents(self.clients[sequence], sequence.num_computed)

    def check_states(self) -> None:
        running, waiting = self.scheduler.running, list(self.scheduler.waiting)
        assert Counter(running + waiting) == Counter(list(self.clients))
        assert all(is_running(each) for each in running)
        assert len({each.row for each in running}) == len(running)
        assert all(0 <= each.row < self.limits.max_seqs for each in running)
        for each in waiting:
            assert each.status is SequenceStatus.WAITING
            assert each.row == -1 and each.num_computed == 0
            assert not each.blocks and not each.held_media

    def check_blocks(self) -> None:
        held: Counter[int] = Counter()
        for each in self.scheduler.running:
            assert len(set(each.blocks)) == len(each.blocks)
            held.update(each.blocks)
            room = len(each.blocks) * self.limits.block_size
            assert each.num_computed <= room < len(each) + self.limits.block_size
        assert self.pool._holders == [held[b] for b in range(self.pool.num_blocks)]
        assert self.pool.num_free + len(held) == self.pool.num_blocks
        for each in self.scheduler.running:
            full = each.num_computed // self.limits.block_size
            assert all(held[block] == 1 for block in each.blocks[full:]), "shared before it is full"

    def check_features(self) -> None:
        held = {
            (each.scope, item.digest)
            for each in self.scheduler.running
            for item in self.clients[each].held
        }
        assert self.cache.num_held == len(held)
        assert all(key in self.cache for key in held), "a feature left too early"
        assert self.cache.used <= self.limits.capacity or len(self.cache) == len(held)

    def _check_contents(self, client: Client, end: int) -> None:
        """The first `end` tokens of a sequence are in its blocks, and nobody else's tokens."""
        blocks = client.sequence.blocks
        cells = [content for block in blocks for content in self.cells[block]]
        assert cells[:end] == client.histories[:end], "a block holds something else"

    # The end -----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Nobody starves: each step brings the oldest running sequence nearer to its end."""
        if sys.exception():  # a promise is broken already: that one is to be seen
            return
        left = [each.sequence for each in self.clients.values()]
        for _ in range(sum(len(each.prompt) + each.params.max_tokens for each in left)):
            self.steps(1)
        assert not self.clients, "some starve"
        self.check()
        assert self.pool.num_free == self.pool.num_blocks and self.cache.num_held == 0
        self.reached["drained"] += bool(left)


def is_running(sequence: Sequence) -> bool:
    return sequence.status is SequenceStatus.RUNNING


def is_decoding(sequence: Sequence) -> bool:
    """Whether all it lacks is its newest token."""
    return sequence.num_remaining == 1 and sequence.num_computed >= len(sequence.prompt)


def test_scheduler_keeps_its_promises_whatever_happens_in_whatever_order() -> None:
    class Counted(SchedulerMachine):
        reached: ClassVar[Counter[str]] = Counter()

    run_state_machine_as_test(
        Counted, settings=settings(max_examples=RUNS, stateful_step_count=STEPS)
    )
    assert {name for name in MILESTONES if not Counted.reached[name]} == set()
