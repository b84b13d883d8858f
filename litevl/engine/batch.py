"""A step's plan as the tensors of one packed forward pass.

Everything is laid out in numpy on the host and copied once. Called by `runner.py`; knows the
nouns and the attention batch, no model family.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from litevl.models.attention import AttentionBackend, AttentionBatch, KVCache, stage
from litevl.sequence import Chunk, MediaItem, MediaKey, Sequence, Step

Ints = NDArray[np.int64]

PARTLY = 8  # so much longer must be what lies in a row when it is not the whole context


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSpan:
    """Rows of the batch that take features [start, stop) of one item."""

    key: MediaKey
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """T tokens of B sequences, of which S are to be sampled."""

    token_ids: Tensor  # (T,) int64
    positions: Tensor  # (3, T) int64
    attention: AttentionBatch
    media_rows: Tensor  # (M,) int64: rows that take features instead of embeddings
    media_spans: tuple[MediaSpan, ...]  # where those features come from, in order
    ends: Tensor  # (B,) int64: the last row of each chunk
    last: Tensor  # (S,) int64: the chunks that are the last of their sequences
    sampled: tuple[Sequence, ...]


def pack(
    step: Step, cache: KVCache, backend: AttentionBackend, device: torch.device
) -> PackedBatch:
    """Lay out a step. Chunks keep the step's order: decodes first."""
    chunks = step.chunks
    ends = np.cumsum([chunk.length for chunk in chunks])
    sampled = [i for i, chunk in enumerate(chunks) if chunk.is_last]
    rows, spans = _media(chunks, ends)
    decodes, others = _split(chunks)
    return PackedBatch(
        token_ids=stage(np.concatenate([_newest(decodes), *map(_token_ids, others)]), device),
        positions=stage(
            np.concatenate([_newest_positions(decodes), *map(_positions, others)], axis=1), device
        ),
        attention=_attention(chunks, ends, cache, backend, device),
        media_rows=stage(rows, device),
        media_spans=spans,
        ends=stage(ends - 1, device),
        last=stage(np.asarray(sampled, dtype=np.int64), device),
        sampled=tuple(chunks[i].sequence for i in sampled),
    )


def _split(chunks: tuple[Chunk, ...]) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...]]:
    """Chunks of one generated token each, and the rest. The first are laid out together: arrays
    of one element each would cost more than all else that the host does for them."""
    count = 0
    for chunk in chunks:
        if chunk.length > 1 or chunk.start < len(chunk.sequence.prompt):
            break
        count += 1
    return chunks[:count], chunks[count:]


def _newest(decodes: tuple[Chunk, ...]) -> Ints:
    ids = [c.sequence.output_token_ids[c.start - len(c.sequence.prompt)] for c in decodes]
    return np.asarray(ids, dtype=np.int64)


def _newest_positions(decodes: tuple[Chunk, ...]) -> Ints:
    places = [chunk.start + chunk.sequence.prompt.position_delta for chunk in decodes]
    return np.broadcast_to(np.asarray(places, dtype=np.int64), (3, len(places)))


def _attention(
    chunks: tuple[Chunk, ...],
    ends: Ints,
    cache: KVCache,
    backend: AttentionBackend,
    device: torch.device,
) -> AttentionBatch:
    block_size = cache.block_size
    decodes, others = _split(chunks)
    slots = [np.asarray([_slot(chunk, block_size) for chunk in decodes], dtype=np.int64)]
    slots += [_slots(chunk, block_size) for chunk in others]
    context_lens = tuple(chunk.end for chunk in chunks)
    table = _block_table(chunks, block_size)
    return AttentionBatch(
        backend=backend,
        cache=cache,
        slots=stage(np.concatenate(slots), device),
        cu_seqlens=stage(np.concatenate([[0], ends]).astype(np.int32), device),
        context_lens_on_device=stage(np.asarray(context_lens, dtype=np.int32), device),
        block_table=stage(table, device),
        query_lens=tuple(chunk.length for chunk in chunks),
        context_lens=context_lens,
        lying_lens=lying_lens(table, context_lens, backend, cache.keys[0].dtype),
        first_slots=tuple((table[:, 0] * block_size).tolist()),
    )


def _block_table(chunks: tuple[Chunk, ...], block_size: int) -> NDArray[np.int32]:
    widths = [-(-chunk.end // block_size) for chunk in chunks]
    table = np.zeros((len(chunks), max(widths)), dtype=np.int32)
    for row, (chunk, width) in enumerate(zip(chunks, widths, strict=True)):
        table[row, :width] = chunk.sequence.blocks[:width]
    return table


def lying_lens(
    table: NDArray[np.int32],
    context_lens: tuple[int, ...],
    backend: AttentionBackend,
    dtype: torch.dtype,
) -> tuple[int, ...]:
    """How many tokens lie in a row where a context begins, for those long enough that reading them
    in place is faster; 0 for the others. In half precision that would round more often than SDPA
    does, and an answer would depend on where its blocks lie."""
    if backend.view_from is None or dtype != torch.float32 or max(context_lens) < backend.view_from:
        return (0,) * len(context_lens)
    lens = np.asarray(context_lens)
    breaks = np.ones(table.shape, dtype=np.bool_)
    breaks[:, :-1] = table[:, 1:] != table[:, :-1] + 1
    lying = np.minimum((breaks.argmax(axis=1) + 1) * backend.block_size, lens)
    least = np.where(lying == lens, backend.view_from, PARTLY * backend.view_from)
    return tuple(np.where(lying >= least, lying, 0).tolist())


def _slot(decode: Chunk, block_size: int) -> int:
    block, offset = divmod(decode.start, block_size)
    return decode.sequence.blocks[block] * block_size + offset


def _slots(chunk: Chunk, block_size: int) -> Ints:
    index = np.arange(chunk.start, chunk.end)
    table = np.asarray(chunk.sequence.blocks, dtype=np.int64)
    slots: Ints = table[index // block_size] * block_size + index % block_size
    return slots


def _token_ids(chunk: Chunk) -> Ints:
    prompt = chunk.sequence.prompt
    head = prompt.token_ids[chunk.start : chunk.end]
    if chunk.end <= len(prompt):
        return head
    first = max(chunk.start - len(prompt), 0)
    tail = chunk.sequence.output_token_ids[first : chunk.end - len(prompt)]
    return np.concatenate([head, np.asarray(tail, dtype=np.int64)])


def _positions(chunk: Chunk) -> Ints:
    """(3, length): the prompt's own, then index + delta on all three rows."""
    prompt = chunk.sequence.prompt
    head = prompt.positions[:, chunk.start : chunk.end]
    if chunk.end <= len(prompt):
        return head
    index = np.arange(max(chunk.start, len(prompt)), chunk.end) + prompt.position_delta
    return np.concatenate([head, np.broadcast_to(index, (3, len(index)))], axis=1)


def _media(chunks: tuple[Chunk, ...], ends: Ints) -> tuple[Ints, tuple[MediaSpan, ...]]:
    """The rows of the batch that are placeholders, and the features they take."""
    rows: list[Ints] = [np.zeros(0, dtype=np.int64)]
    spans: list[MediaSpan] = []
    for chunk, end in zip(chunks, ends, strict=True):
        for item, start, stop in _touched(chunk):
            rows.append(item.token_indices[start:stop] - chunk.start + (end - chunk.length))
            spans.append(MediaSpan(key=chunk.sequence.media_key(item), start=start, stop=stop))
    return np.concatenate(rows), tuple(spans)


def _touched(chunk: Chunk) -> Iterator[tuple[MediaItem, int, int]]:
    """The items whose placeholders [start, stop) lie in the chunk."""
    if chunk.start >= len(chunk.sequence.prompt):
        return
    for item in chunk.sequence.prompt.media:
        start, stop = np.searchsorted(item.token_indices, (chunk.start, chunk.end))
        if start < stop:
            yield item, int(start), int(stop)
