"""An engine to be stepped by hand, prompts of random tokens, and contexts that need no prefill.

Used by the programs that time steps. `TimedModel` tells what of a step was the model's own work;
`plant` fills the cache as if prompts had been computed, so that a context of thousands of tokens
costs a benchmark no minutes. Knows litevl's engine, no HTTP.
"""

from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from litevl.cache import Cache
from litevl.engine.blocks import BlockPool, Chain
from litevl.engine.engine import Engine
from litevl.engine.runner import Runner
from litevl.engine.sampler import Sampler
from litevl.engine.scheduler import Scheduler
from litevl.models.attention import AttentionBatch, KVCache
from litevl.models.linear import PackedLinear
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import MediaKey, Prompt, SamplingParams, Sequence

GREEDY = SamplingParams(max_tokens=10**6, temperature=0.0)
SAMPLED = SamplingParams(max_tokens=10**6, temperature=0.7, top_k=20, top_p=0.8)
UNCUT = SamplingParams(max_tokens=10**6, temperature=1.0)
ENCODER_BYTES = 2**28
FIRST_WORD = 20  # ids from here to LAST_WORD are plain words of every vocabulary used here
LAST_WORD = 250


class TimedModel(QwenVL):
    """A model that adds up its forwards' tokens and seconds, and remembers the last one."""

    def __init__(self, model: QwenVL) -> None:
        self.__dict__.update(model.__dict__)
        self.seconds = 0.0
        self.num_tokens = 0
        self._last: tuple[Any, ...] = ()

    def embed(self, token_ids: Tensor) -> Tensor:
        began = perf_counter()
        embeds = super().embed(token_ids)
        self.seconds += perf_counter() - began
        self.num_tokens += len(token_ids)
        self._last = (token_ids,)
        return embeds

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        batch: AttentionBatch,
        media_rows: Tensor,
        features: Tensor,
    ) -> Tensor:
        began = perf_counter()
        hidden = super().forward(embeds, positions, batch, media_rows, features)
        self.seconds += perf_counter() - began
        self._last += (positions, batch, media_rows, features)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        began = perf_counter()
        logits = super().logits(hidden)
        self.seconds += perf_counter() - began
        return logits

    def matrices(self) -> list[nn.Module]:
        """Every linear layer that a decode step goes through, in order."""
        layers = [each for each in self._lm.modules() if isinstance(each, nn.Linear | PackedLinear)]
        return [*layers, self._head]

    @torch.inference_mode()
    def repeat(self) -> None:
        """The last step's forward once more, bare. It writes the same keys to the same slots."""
        token_ids, positions, batch, media_rows, features = self._last
        hidden = QwenVL.forward(
            self, QwenVL.embed(self, token_ids), positions, batch, media_rows, features
        )
        QwenVL.logits(self, hidden)


class Workbench:
    """One engine without a thread, around a model and a cache of `num_blocks` blocks."""

    def __init__(
        self,
        model: QwenVL,
        *,
        num_blocks: int,
        max_num_seqs: int,
        max_tokens: int = 256,
    ) -> None:
        encoder_cache: Cache[MediaKey, Tensor] = Cache(ENCODER_BYTES)
        self.model = TimedModel(model)
        self.pool = BlockPool(num_blocks, model.backend.block_size)
        self.cache = model.new_cache(num_blocks)
        self.scheduler = Scheduler(
            self.pool,
            encoder_cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_tokens,
        )
        sampler = Sampler(model.vocab_size, max_num_seqs, model.device)
        self.engine = Engine(
            self.scheduler,
            Runner(self.model, self.cache, sampler, encoder_cache),
            max_model_len=num_blocks * model.backend.block_size + 1,
            max_num_seqs=max_num_seqs,
            max_num_queued_reqs=10**6,
        )

    def step(self) -> tuple[float, float]:
        """One step of the engine: seconds in all, and seconds of them in the model's forward."""
        self.model.seconds = 0.0
        began = perf_counter()
        self.engine.step()
        return perf_counter() - began, self.model.seconds


def words(rng: np.random.Generator, length: int) -> Prompt:
    """A prompt of random plain words."""
    ids = rng.integers(FIRST_WORD, LAST_WORD, length)
    positions = np.broadcast_to(np.arange(length), (3, length))
    return Prompt(token_ids=ids, positions=positions, position_delta=0)


def decoding(
    model: QwenVL,
    *,
    rows: int,
    context: int,
    params: SamplingParams = GREEDY,
    is_scattered: bool = False,
) -> Workbench:
    """An engine whose next steps decode `rows` sequences of about `context` tokens.

    Good for one block's length of steps. With `is_scattered` the last blocks of the contexts lie
    between one another's, as they do once sequences have generated text beside each other.
    """
    size = model.backend.block_size
    length = max(context // size, 1) * size + 1
    rng = np.random.default_rng(0)
    bench = Workbench(
        model, num_blocks=rows * (length // size + 1), max_num_seqs=rows, max_tokens=max(rows, 256)
    )
    prompts = [words(rng, length) for _ in range(rows)]
    sequences = [
        Sequence(request_id=str(i), prompt=prompt, params=params)
        for i, prompt in enumerate(prompts)
    ]
    plant(bench, sequences, tail=4 if is_scattered else 0)
    for sequence in sequences:
        bench.engine.add(sequence)
    return bench


def plant(bench: Workbench, sequences: list[Sequence], *, tail: int) -> None:
    """Fill the cache as if these prompts had been computed, and name their blocks.

    Contents are random: zeros that were never written share one page of memory, and would be read
    from the processor's cache. The last `tail` blocks of each are dealt out in turns.
    """
    _fill(bench.cache)
    pool = bench.pool
    full = (len(sequences[0].prompt) - 1) // pool.block_size
    turns = min(tail, full)
    # One block more than is named: that which the next tokens are written to follows the others.
    blocks = [pool.allocate(full - turns + (not turns)) for _ in sequences]
    for _ in range(turns):
        for each in blocks:
            each += pool.allocate(1)
    for sequence, each in zip(sequences, blocks, strict=True):
        names = Chain(sequence, pool.block_size).names(full)
        for block, name in zip(each, names, strict=False):
            pool.register(block, name)
    # The last first: what was freed last is handed out first.
    for each in reversed(blocks):
        pool.free(each)


def _fill(cache: KVCache) -> None:
    torch.manual_seed(0)
    for layer in (*cache.keys, *cache.values):
        layer.uniform_(-1, 1)
