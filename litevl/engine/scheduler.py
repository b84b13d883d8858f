"""Which tokens of which sequences run in the next forward pass.

No prefill phase and no decode phase: every running sequence is brought up to its known length under
one token budget, decodes first, then prompts in chunks. Media are encoded by the step whose chunk
first touches them, under a budget of their own.

Pure Python: knows counts of tokens, never tensors, tokenizers or HTTP. Called only by `engine.py`.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

from litevl.engine.blocks import BlockPool
from litevl.engine.encoder_cache import EncoderCache
from litevl.sequence import Chunk, MediaItem, Sequence, SequenceStatus, Step


class Scheduler:
    """A sequence is waiting, running or finished; only running ones hold blocks."""

    def __init__(
        self,
        pool: BlockPool,
        encoder_cache: EncoderCache[Any],
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
        self._max_tokens = max_num_batched_tokens
        self._max_encoder_tokens = max_encoder_tokens or max_num_batched_tokens
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

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

    def finish(self, sequence: Sequence) -> None:
        """Free whatever the sequence holds, in whatever state it is; a second call does nothing."""
        if sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is SequenceStatus.RUNNING:
            self._release(sequence)
        sequence.status = SequenceStatus.FINISHED

    def complete(self, chunk: Chunk) -> None:
        """Note that a chunk's keys and values are cached; media that lie behind it are let go."""
        sequence = chunk.sequence
        sequence.num_computed = chunk.end
        if chunk.start < len(sequence.prompt):
            media = sequence.prompt.media
            self.encoder_cache.drop(item for item in media if item.token_indices[-1] < chunk.end)

    def _plan_decodes(self, plan: "_Plan") -> bool:
        """Plan one token for every sequence that generates; False when one had to be preempted."""
        preemptions = self.num_preemptions
        for sequence in list(self.running):
            decodes = sequence.num_remaining == 1 and sequence.num_computed >= len(sequence.prompt)
            if decodes and plan.has_tokens and self._grow(sequence):
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
        """Send a sequence back to the front of the queue; it will be recomputed from its tokens."""
        self._release(sequence)
        sequence.num_computed = 0
        sequence.status = SequenceStatus.WAITING
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _admit(self, plan: "_Plan") -> None:
        """Start waiting sequences in order of arrival, with blocks for all their known tokens."""
        while self.waiting and self._free_rows and plan.has_tokens:
            sequence = self.waiting[0]
            needed = self.pool.blocks_for(len(sequence))
            if needed > self.pool.num_free:
                return
            self.waiting.popleft()
            sequence.blocks = self.pool.allocate(needed)
            sequence.row = self._free_rows.pop()
            sequence.status = SequenceStatus.RUNNING
            self.running.append(sequence)
            plan.take(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.free(sequence.blocks)
        self._free_rows.append(sequence.row)
        self.encoder_cache.drop(sequence.prompt.media)
        sequence.blocks = []
        sequence.row = -1


class _Plan:
    """A step in the making: what is left of the two budgets, and what they were spent on."""

    def __init__(self, tokens: int, encoder_tokens: int, encoder_cache: EncoderCache[Any]) -> None:
        self._tokens = tokens
        self._encoder_tokens = encoder_tokens
        self._encoder_cache = encoder_cache
        self._chunks: list[Chunk] = []
        self._encode: list[MediaItem] = []

    @property
    def has_tokens(self) -> bool:
        return self._tokens > 0

    def take(self, sequence: Sequence) -> None:
        """Plan as many of the sequence's remaining tokens as the budgets allow, perhaps none."""
        start = sequence.num_computed
        length = min(sequence.num_remaining, self._tokens)
        length = self._fit_media(self._unencoded(sequence), start, length)
        if length > 0:
            self._chunks.append(Chunk(sequence=sequence, start=start, length=length))
            self._tokens -= length

    def _unencoded(self, sequence: Sequence) -> Iterable[MediaItem]:
        if sequence.num_computed >= len(sequence.prompt):
            return
        for item in sequence.prompt.media:
            if item.token_indices[-1] >= sequence.num_computed and item not in self._encoder_cache:
                yield item

    def _fit_media(self, items: Iterable[MediaItem], start: int, length: int) -> int:
        """Plan to encode what the chunk touches; end the chunk before an item that does not fit."""
        for item in items:
            first = int(item.token_indices[0])
            if first >= start + length:
                break
            # An item larger than the whole budget must still run: alone in its step.
            if item.num_tokens > self._encoder_tokens and self._encode:
                return max(first - start, 0)
            self._encoder_tokens -= item.num_tokens
            self._encode.append(item)
        return length

    def step(self) -> Step | None:
        if not self._chunks:
            return None
        return Step(chunks=tuple(self._chunks), encode=tuple(self._encode))
