"""Which tokens of which sequences run in the next forward pass.

No prefill phase and no decode phase: every running sequence is brought up to its known length under
one token budget, decodes first, then prompts in chunks. What begins like something already computed
shares its blocks. Media are encoded by the step whose chunk first touches them, under a budget of
their own, unless their features are still there.

Pure Python: knows counts of tokens, never tensors, tokenizers or HTTP. Called only by `engine.py`.
"""

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from litevl.cache import Cache
from litevl.engine.blocks import BlockPool, Chain
from litevl.sequence import Chunk, Encode, MediaItem, MediaKey, Sequence, SequenceStatus, Step


class Scheduler:
    """A sequence is waiting, running or finished; only running ones hold blocks and features."""

    def __init__(
        self,
        pool: BlockPool,
        encoder_cache: Cache[MediaKey, Any],
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_encoder_tokens: int | None = None,
    ) -> None:
        self.pool = pool
        self.encoder_cache = encoder_cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self.num_preemptions = 0
        self.prefix_queries = 0  # prompt tokens looked for, and found, when sequences first ran
        self.prefix_hits = 0
        self._max_tokens = max_num_batched_tokens
        self._max_encoder_tokens = max_encoder_tokens or max_num_batched_tokens
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._chains: dict[Sequence, Chain] = {}
        self._promised: dict[bytes, Sequence] = {}  # names of blocks that are being computed

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)
        self._chains[sequence] = Chain(sequence, self.pool.block_size)

    def schedule(self) -> Step | None:
        """Decide the next step; None when nothing can run."""
        plan = _Plan(self._max_tokens, self._max_encoder_tokens, self.encoder_cache)
        may_admit = self._plan_decodes(plan)
        for sequence in self.running:
            if sequence.num_remaining > 1 or sequence.num_computed < len(sequence.prompt):
                plan.take(sequence)
        if may_admit:
            self._admit(plan)
        return plan.step()

    def overdue(self, latest: float) -> list[Sequence]:
        """What arrived before `latest` and has not run. One that was preempted has, and one whose
        blocks another computes right now is as good as running."""
        return [
            sequence
            for sequence in self.waiting
            if sequence.arrived < latest
            and sequence.num_cached is None
            and self._cached_blocks(sequence) is not None
        ]

    def finish(self, sequence: Sequence, *, is_spoiled: bool = False) -> None:
        """Free whatever the sequence holds, in whatever state it is; a second call does nothing.

        What a spoiled one computed is offered to nobody.
        """
        if sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is SequenceStatus.RUNNING:
            if is_spoiled:
                self.pool.forget(sequence.blocks)
            self._release(sequence)
            for item in sequence.prompt.media if is_spoiled else ():
                self.encoder_cache.forget(sequence.media_key(item))
        self._chains.pop(sequence, None)
        sequence.status = SequenceStatus.FINISHED

    def complete(self, chunk: Chunk) -> None:
        """Note that a chunk's keys and values are cached: full blocks can be shared from now on,
        and features that lie behind it are let go. One that was aborted meanwhile is left alone."""
        sequence = chunk.sequence
        if sequence.status is not SequenceStatus.RUNNING:
            return
        size = self.pool.block_size
        before, full = sequence.num_computed // size, chunk.end // size
        sequence.num_computed = chunk.end
        if full > before:
            names = self._chains[sequence].names(full)
            for block, name in zip(sequence.blocks[before:full], names[before:], strict=True):
                self.pool.register(block, name)
                self._withdraw(sequence, name)
        self._let_go(sequence, [i for i in sequence.held_media if i.token_indices[-1] < chunk.end])

    # Running sequences -------------------------------------------------------------------------

    def _plan_decodes(self, plan: "_Plan") -> bool:
        """Plan one token for every sequence that generates; False when one had to be preempted."""
        preemptions = self.num_preemptions
        for sequence in list(self.running):
            decodes = sequence.num_remaining == 1 and sequence.num_computed >= len(sequence.prompt)
            if decodes and self._grow(sequence):
                plan.take(sequence)
        return preemptions == self.num_preemptions

    def _grow(self, sequence: Sequence) -> bool:
        """Give a running sequence room for its newest token, at the newest sequences' cost."""
        while sequence.status is SequenceStatus.RUNNING:
            missing = self.pool.blocks_for(len(sequence)) - len(sequence.blocks)
            if missing <= self.pool.num_free:
                sequence.blocks += self.pool.allocate(missing)
                return True
            # Those behind the victim in `running` have not been planned yet in this step.
            self._preempt(self.running[-1])
        return False

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence back to the front of the queue; it will be recomputed from its tokens,
        as far as its blocks have found other use by then."""
        self._release(sequence)
        sequence.num_computed = 0
        sequence.status = SequenceStatus.WAITING
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    # Admission ---------------------------------------------------------------------------------

    def _admit(self, plan: "_Plan") -> None:
        """Start waiting sequences in order of arrival, with blocks for all their known tokens.

        One whose next block is being computed by another is passed over until it can be shared:
        many answers to one prompt compute it once.
        """
        for sequence in list(self.waiting):
            if not (self._free_rows and plan.has_tokens):
                return
            hits = self._cached_blocks(sequence)
            if hits is None:
                continue
            missing = self.pool.blocks_for(len(sequence)) - len(hits)
            if missing > self.pool.num_free - self.pool.num_unheld(hits):
                return
            self.waiting.remove(sequence)
            self._start(sequence, hits, missing)
            plan.take(sequence)

    def _cached_blocks(self, sequence: Sequence) -> list[int] | None:
        """The computed blocks that the sequence begins with; None when the next is under way.

        Never all of it: its last token must run, for there is nothing to sample from else.
        """
        hits: list[int] = []
        for name in self._chains[sequence].names((len(sequence) - 1) // self.pool.block_size):
            block = self.pool.find(name)
            if block is None:
                return None if name in self._promised else hits
            hits.append(block)
        return hits

    def _start(self, sequence: Sequence, hits: list[int], missing: int) -> None:
        self.pool.share(hits)
        sequence.blocks = hits + self.pool.allocate(missing)
        sequence.num_computed = len(hits) * self.pool.block_size
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
            sequence.started = time.monotonic()
            self.prefix_queries += len(sequence.prompt)
            self.prefix_hits += sequence.num_cached
        sequence.row = self._free_rows.pop()
        sequence.status = SequenceStatus.RUNNING
        self.running.append(sequence)
        names = self._chains[sequence].names(len(sequence) // self.pool.block_size)
        self._promised |= {
            name: sequence for name in names[len(hits) :] if name not in self._promised
        }

    def _release(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.free(sequence.blocks)
        self._free_rows.append(sequence.row)
        self._let_go(sequence, list(sequence.held_media))
        for name in self._chains[sequence].names(len(sequence) // self.pool.block_size):
            self._withdraw(sequence, name)
        sequence.blocks = []
        sequence.row = -1

    def _withdraw(self, sequence: Sequence, name: bytes) -> None:
        if self._promised.get(name) is sequence:
            del self._promised[name]

    def _let_go(self, sequence: Sequence, items: Iterable[MediaItem]) -> None:
        for item in items:
            sequence.held_media.remove(item)
            self.encoder_cache.release(sequence.media_key(item))


class _Plan:
    """A step in the making: what is left of the two budgets, and what they were spent on."""

    def __init__(
        self, tokens: int, encoder_tokens: int, encoder_cache: Cache[MediaKey, Any]
    ) -> None:
        self._tokens = tokens
        self._encoder_tokens = encoder_tokens
        self._encoder_cache = encoder_cache
        self._chunks: list[Chunk] = []
        self._encode: dict[tuple[bytes, bytes], Encode] = {}

    @property
    def has_tokens(self) -> bool:
        return self._tokens > 0

    def take(self, sequence: Sequence) -> None:
        """Plan as many of the sequence's remaining tokens as the budgets allow, perhaps none."""
        start = sequence.num_computed
        length = min(sequence.num_remaining, self._tokens)
        if length and start < len(sequence.prompt):
            length = self._fit_media(sequence, start, length)
        if length > 0:
            self._chunks.append(Chunk(sequence=sequence, start=start, length=length))
            self._tokens -= length

    def _fit_media(self, sequence: Sequence, start: int, length: int) -> int:
        """Hold the features of what the chunk touches, and plan to encode what has none yet; end
        the chunk before an item that does not fit."""
        for item in sequence.prompt.media:
            first, last = int(item.token_indices[0]), int(item.token_indices[-1])
            if first >= start + length:
                break
            if last < start:
                continue
            if not self._encodes(sequence, item):
                return max(first - start, 0)
            if item not in sequence.held_media:
                sequence.held_media.append(item)
                self._encoder_cache.hold(sequence.media_key(item))
        return length

    def _encodes(self, sequence: Sequence, item: MediaItem) -> bool:
        """Whether the step will have the item's features; if need be, plan to encode it."""
        key = sequence.media_key(item)
        if key in self._encoder_cache or key in self._encode:
            return True
        # An item larger than the whole budget must still run: alone in its step.
        if item.num_tokens > self._encoder_tokens and self._encode:
            return False
        self._encoder_tokens -= item.num_tokens
        self._encode[key] = Encode(key=key, item=item)
        return True

    def step(self) -> Step | None:
        if not self._chunks:
            return None
        return Step(chunks=tuple(self._chunks), encode=tuple(self._encode.values()))
