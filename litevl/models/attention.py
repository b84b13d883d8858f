"""Paged attention behind transformers' `AttentionInterface`: one packed batch, many sequences.

transformers calls `paged_attention` in every text layer of an unmodified model; it writes the new
keys and values into the paged cache and lets a backend attend to what each sequence has there.
The batch comes from the one module variable, set by `use_batch` around a forward; without one the
function raises, since a forward without it would silently see the future. No mask is registered
for the name, so the model builds none. Called by `qwen_vl.py`; knows no scheduler and no family.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

TEXT_ATTENTION = "litevl_paged"  # must not contain "flash": transformers tests for the substring
VISION_ATTENTION = "litevl_flash_varlen"  # must contain it: so the tower passes cu_seqlens


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of every layer, (num_blocks, block_size, kv_heads, head_dim) each."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def block_size(self) -> int:
        return self.keys[0].shape[1]

    def read(self, layer: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a run of slots, in place: (end - begin, kv_heads, head_dim) each."""
        keys, values = self.keys[layer].flatten(0, 1), self.values[layer].flatten(0, 1)
        return keys[begin:end], values[begin:end]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store (T, kv_heads, head_dim) tensors in slots (T,), counted through all blocks."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, key)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeGroup:
    """G decode rows that attend in one call, padded to S, the longest of their contexts."""

    rows: Tensor  # (G,) int64: their places in the batch
    table: Tensor  # (G, blocks) int32
    lens: Tensor  # (G, 1) int32: their contexts
    mask: Tensor  # (G, S) bool: what each may see
    behind: Tensor  # (N,) int64: what the table holds between a context and S, of all its slots


@dataclass(frozen=True, kw_only=True)
class AttentionBatch:
    """What attention must know of a step: B sequences, T new tokens, decodes first."""

    backend: "AttentionBackend"
    cache: KVCache
    slots: Tensor  # (T,) int64: where the new keys and values go
    cu_seqlens: Tensor  # (B + 1,) int32: where each sequence's new tokens begin
    context_lens_on_device: Tensor  # (B,) int32
    block_table: Tensor  # (B, most blocks) int32, padded with 0
    query_lens: tuple[int, ...]  # new tokens of each sequence
    context_lens: tuple[int, ...]  # tokens each sequence can see, the new ones included
    lying_lens: tuple[int, ...]  # how much of a context is read in place: what lies in a row, or 0
    first_slots: tuple[int, ...]  # where that begins

    @cached_property
    def num_decodes(self) -> int:
        """How many sequences at the front have one new token."""
        return next(
            (i for i, length in enumerate(self.query_lens) if length != 1), len(self.query_lens)
        )

    @cached_property
    def cu_context_lens(self) -> Tensor:
        """(B + 1,) int32: the contexts, laid end to end. Built once a step."""
        return F.pad(self.context_lens_on_device.cumsum(0, dtype=torch.int32), (1, 0))

    @cached_property
    def decode_groups(self) -> tuple[DecodeGroup, ...]:
        """The decode rows to be gathered, in groups whose contexts differ by less than a factor of
        two: so padding never costs more than the contexts themselves. Built once a step."""
        rows_by_size: dict[int, list[int]] = {}
        for row in range(self.num_decodes):
            if self.lying_lens[row]:
                continue
            rows_by_size.setdefault(self.context_lens[row].bit_length(), []).append(row)
        return tuple(self._decode_group(rows) for rows in rows_by_size.values())

    def _decode_group(self, rows: list[int]) -> DecodeGroup:
        device = self.slots.device
        index = stage(np.asarray(rows), device)
        lens = self.context_lens_on_device[index][:, None]
        own = [self.context_lens[row] for row in rows]
        longest, width = max(own), -(-max(own) // self.cache.block_size)
        slots = width * self.cache.block_size
        behind = [np.arange(i * slots + n, i * slots + longest) for i, n in enumerate(own)]
        return DecodeGroup(
            rows=index,
            table=self.block_table[index, :width],
            lens=lens,
            mask=torch.arange(longest, device=device) < lens,
            behind=stage(np.concatenate(behind), device),
        )

    @cached_property
    def tails(self) -> dict[int, Tensor]:
        """For each decode row whose context lies in a row for a part only, the blocks of the rest:
        (1, blocks) int32. Built once a step."""
        size = self.cache.block_size
        return {
            row: self.block_table[row : row + 1, lying // size : -(-self.context_lens[row] // size)]
            for row, lying in enumerate(self.lying_lens[: self.num_decodes])
            if 0 < lying < self.context_lens[row]
        }

    @cached_property
    def chunk_masks(self) -> dict[int, Tensor]:
        """Causal (n, context) bool mask for each chunk that continues an earlier one."""
        return {
            i: torch.ones(n, total, dtype=torch.bool, device=self.slots.device).tril(total - n)
            for i, (n, total) in enumerate(zip(self.query_lens, self.context_lens, strict=True))
            if i >= self.num_decodes and n < total
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCall:
    """What one layer asks of attention for T new tokens, after rotation."""

    q: Tensor  # (T, heads, head_dim), contiguous
    k: Tensor  # (T, kv_heads, head_dim)
    v: Tensor  # (T, kv_heads, head_dim)
    layer: int
    scale: float
    window: int = 0  # tokens that can be seen, the newest included; 0: all


class AttentionBackend(Protocol):
    """How one layer attends to the cache; returns the shape of q."""

    block_size: int
    # Contexts of so many tokens are read in place where their blocks lie in a row; where only the
    # first do, eight times as many of them must. None: never.
    view_from: int | None

    def attend(self, call: LayerCall, batch: AttentionBatch) -> Tensor: ...


class SdpaPaged:
    """For the CPU, and wherever nothing better runs: two matrix products over a context that lies
    in a row, torch's SDPA over gathered blocks else.

    On two cores, 14 heads on 2, dimension 64: at 16 rows of 64 tokens gathering takes half the time
    of reading in place; from 256 tokens on it takes 2 to 6 times as long, and copies the context.
    Where the last blocks lie elsewhere and must be gathered, reading in place pays from 1024 on.
    """

    def __init__(self, block_size: int = 16, view_from: int = 128) -> None:
        self.block_size = block_size
        self.view_from: int | None = view_from

    def attend(self, call: LayerCall, batch: AttentionBatch) -> Tensor:
        out = torch.empty_like(call.q)
        for row in range(batch.num_decodes):
            if batch.lying_lens[row]:
                out[row] = self._decode_in_place(call, row, batch)
        for group in batch.decode_groups:
            out.index_copy_(0, group.rows, self._decode(call, group, batch.cache))
        begin = batch.num_decodes
        for row in range(begin, len(batch.query_lens)):
            end = begin + batch.query_lens[row]
            out[begin:end] = self._chunk(call, slice(begin, end), row, batch)
            begin = end
        return out

    def _decode_in_place(self, call: LayerCall, row: int, batch: AttentionBatch) -> Tensor:
        """One row against its context: (heads, head_dim). The heads that share keys read them
        together, which SDPA does not do. What was generated beside other sequences lies between
        their blocks: that end of the context is gathered."""
        first, lying, total = (
            each[row] for each in (batch.first_slots, batch.lying_lens, batch.context_lens)
        )
        begin = max(0, total - call.window) if call.window else 0
        keys, values = batch.cache.read(call.layer, first + min(begin, lying), first + lying)
        q = call.q[row].view(keys.shape[1], -1, keys.shape[2]) * call.scale
        scores = q @ keys.permute(1, 2, 0)
        if lying == total:
            return (scores.softmax(dim=-1) @ values.transpose(0, 1)).view_as(call.q[row])
        unseen = max(0, begin - lying)
        more_keys, more_values = (
            _gather(blocks[call.layer], batch.tails[row], total - lying)[0, :, unseen:]
            for blocks in (batch.cache.keys, batch.cache.values)
        )
        weights = torch.cat([scores, q @ more_keys.transpose(1, 2)], dim=-1).softmax(dim=-1)
        near, far = weights[..., len(keys) :], weights[..., : len(keys)]
        return (far @ values.transpose(0, 1) + near @ more_values).view_as(call.q[row])

    def _decode(self, call: LayerCall, group: DecodeGroup, cache: KVCache) -> Tensor:
        """The rows of a group in one call: (G, heads, head_dim)."""
        mask = group.mask
        if call.window:
            place = torch.arange(mask.shape[1], device=mask.device)
            mask = mask & (place >= group.lens - call.window)
        out = F.scaled_dot_product_attention(
            call.q[group.rows][:, :, None],
            _gather_group(cache.keys[call.layer], group),
            _gather_group(cache.values[call.layer], group),
            attn_mask=mask[:, None, None],
            scale=call.scale,
            enable_gqa=True,
        )
        return out[:, :, 0]

    def _chunk(self, call: LayerCall, new: slice, row: int, batch: AttentionBatch) -> Tensor:
        """One sequence's chunk of a prompt: fresh keys alone, or all that the cache has of it."""
        q, total = call.q[new], batch.context_lens[row]
        mask = batch.chunk_masks.get(row)
        if mask is None:
            keys, values = (each[new].transpose(0, 1)[None] for each in (call.k, call.v))
        elif batch.lying_lens[row] == total:
            first = batch.first_slots[row]
            lying = batch.cache.read(call.layer, first, first + total)
            keys, values = (each.transpose(0, 1)[None] for each in lying)
        else:
            table = batch.block_table[row : row + 1, : -(-total // batch.cache.block_size)]
            keys = _gather(batch.cache.keys[call.layer], table, total)
            values = _gather(batch.cache.values[call.layer], table, total)
        if call.window:
            mask = _windowed(mask, len(q), total, call.window, q.device)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=call.scale,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)


def _gather(blocks: Tensor, table: Tensor, length: int) -> Tensor:
    """The first `length` tokens of each row of a block table: (B, kv_heads, length, head_dim)."""
    return blocks[table].flatten(1, 2)[:, :length].transpose(1, 2)


def _gather_group(blocks: Tensor, group: DecodeGroup) -> Tensor:
    """The contexts of a group, padded with zeros: (G, kv_heads, S, head_dim). Behind a context lie
    what others left and hold, and a mask hides no NaN: zero times NaN is NaN."""
    own = blocks[group.table]
    own.flatten(0, 2).index_fill_(0, group.behind, 0)
    return own.flatten(1, 2)[:, : group.mask.shape[1]].transpose(1, 2)


def _windowed(mask: Tensor | None, n: int, total: int, window: int, device: torch.device) -> Tensor:
    """A causal mask (n, total) that also forgets what lies `window` tokens back."""
    if mask is None:
        mask = torch.ones(n, total, dtype=torch.bool, device=device).tril(total - n)
    return mask.triu(total - n - window + 1)


class VarlenPaged:
    """torch's flash attention with a block table: CUDA, bf16 or fp16; one call for any mix."""

    block_size = 256  # the kernel wants pages divisible by 256
    view_from: int | None = None

    def attend(self, call: LayerCall, batch: AttentionBatch) -> Tensor:
        out = varlen_attn(
            call.q,
            batch.cache.keys[call.layer],
            batch.cache.values[call.layer],
            batch.cu_seqlens,
            batch.cu_context_lens,
            max(batch.query_lens),
            max(batch.context_lens),
            scale=call.scale,
            window_size=(call.window - 1 if call.window else -1, 0),
            enable_gqa=True,
            seqused_k=batch.context_lens_on_device,
            block_table=batch.block_table,
            # Always 1: choosing by itself the kernel has given NaN (torchtitan#3235), and told to
            # split it leaves the rows of all sequences but the first unwritten (pytorch#194167).
            num_splits=1,
        )
        assert isinstance(out, Tensor)
        return out


_current: ContextVar[AttentionBatch] = ContextVar("litevl_attention_batch")


@contextmanager
def use_batch(batch: AttentionBatch) -> Iterator[None]:
    """Make `batch` the one that `paged_attention` serves in this thread."""
    token = _current.set(batch)
    try:
        yield
    finally:
        _current.reset(token)


def current_batch() -> AttentionBatch:
    """The batch of the forward under way; raises outside one."""
    batch = _current.get(None)
    if batch is None:
        raise RuntimeError("litevl's attention was called outside an engine step")
    return batch


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the paged cache: q (1, heads, T, head_dim) -> (1, T, heads, head_dim)."""
    batch = current_batch()
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    batch.cache.write(layer, batch.slots, k, v)
    call = LayerCall(
        q=q.contiguous(), k=k, v=v, layer=layer, scale=scaling, window=sliding_window or 0
    )
    out = batch.backend.attend(call, batch)
    return out[None], None


def varlen_vision_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The vision tower's attention on CUDA: every picture or frame a segment of one varlen call."""
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    length = int(max_length_q)
    out = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, length, length, scale=scaling, num_splits=1
    )
    assert isinstance(out, Tensor)
    return out[None], None


def register() -> None:
    """Make both functions known to transformers; calling it again changes nothing."""
    AttentionInterface.register(TEXT_ATTENTION, paged_attention)
    AttentionInterface.register(VISION_ATTENTION, varlen_vision_attention)


def choose_backend(device: torch.device) -> AttentionBackend:
    """The fastest backend for a device: torch's varlen kernels run on CUDA cards from Ampere on."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return VarlenPaged()
    return SdpaPaged()


def stage(data: Tensor | np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """A host array on the device, without waiting for the copy."""
    tensor = data if isinstance(data, Tensor) else torch.from_numpy(data)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
