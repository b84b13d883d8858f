"""What is peculiar to the Qwen-VL families, and the three forwards that the engine needs of them.

Qwen2-VL (and QVQ), Qwen2.5-VL and Qwen3-VL run as transformers wrote them: the language model is
called with embeddings of one packed batch, the vision tower with arguments computed beforehand on
the host, so that neither reads from the device. Called by `engine/runner.py`; made by `loader.py`.
Knows tensors, no scheduler, no text.
"""

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from litevl.models.attention import AttentionBackend, AttentionBatch, KVCache, stage, use_batch
from litevl.models.needs import head_dim
from litevl.sequence import MediaItem

ENCODE_TOKENS = 16384  # of one forward of the tower: the largest picture qwen-vl-utils makes

FAMILIES = {
    "qwen2_vl": "Qwen2-VL and QVQ",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward of the tower can take of an item, and where its features belong."""

    item: MediaItem  # with the piece's pixels and grid
    features: Tensor  # (tokens of the piece, hidden * (1 + deepstack levels))


class QwenVL:
    """A loaded model. All calls come from the engine thread, under `torch.inference_mode`."""

    def __init__(self, model: Any, *, device: torch.device, backend: AttentionBackend) -> None:
        self.device = device
        self.backend = backend
        self.config: Any = model.config
        self._lm: Any = model.model.language_model
        self._visual: Any = model.model.visual
        self._head: Any = model.lm_head
        text = self.config.text_config
        self.vocab_size: int = text.vocab_size
        self.hidden_size: int = text.hidden_size
        self.dtype: torch.dtype = self._lm.embed_tokens.weight.dtype
        self._num_layers: int = text.num_hidden_layers
        self._kv_shape = (text.num_key_value_heads, head_dim(text))
        if self.config.model_type == "qwen3_vl":
            self._lm._deepstack_process = MethodType(self._add_deepstack, self._lm)

    @property
    def num_deepstack_levels(self) -> int:
        return len(getattr(self.config.vision_config, "deepstack_visual_indexes", ()))

    def kv_bytes_per_block(self) -> int:
        """Bytes of keys and values of all layers in one block."""
        heads, dim = self._kv_shape
        per_token = 2 * self._num_layers * heads * dim * self.dtype.itemsize
        return int(per_token * self.backend.block_size)

    def on_each_layer(self, call: Callable[[], None]) -> None:
        """Have `call` made at the beginning of every layer of both towers from now on."""
        for layer in (*self._lm.layers, *self._visual.blocks):
            layer.register_forward_pre_hook(lambda *_: call())

    def new_cache(self, num_blocks: int) -> KVCache:
        """A zeroed paged cache (zeros, since some kernels let NaN leak out of unused slots)."""
        shape = (num_blocks, self.backend.block_size, *self._kv_shape)
        keys, values = (
            tuple(_zeros(shape, self.dtype, self.device) for _ in range(self._num_layers))
            for _ in range(2)
        )
        return KVCache(keys, values)

    def embed(self, token_ids: Tensor) -> Tensor:
        """(T,) int64 -> (T, hidden)"""
        embeds: Tensor = self._lm.embed_tokens(token_ids)
        return embeds

    def encode(self, items: Many[MediaItem]) -> list[Tensor]:
        """Features of items, in order: (tokens, hidden * (1 + deepstack levels)) each, each in
        memory of its own, so that letting one go frees it."""
        width = self.hidden_size * (1 + self.num_deepstack_levels)
        features = [
            torch.empty(item.num_tokens, width, dtype=self.dtype, device=self.device)
            for item in items
        ]
        pieces = [
            piece for pair in zip(items, features, strict=True) for piece in self._slices(*pair)
        ]
        for batch in self._batches(pieces):
            self._encode(batch)
        return features

    def _slices(self, item: MediaItem, features: Tensor) -> Iterator[Piece]:
        """A clip in pieces of time that are encoded one after the other: frames never attend to
        one another, so the features are the same and the memory is bounded."""
        time, height, width = item.grid
        merge = self.config.vision_config.spatial_merge_size
        most = max(1, ENCODE_TOKENS * merge**2 // (height * width))
        for start in range(0, time, most):
            rows = slice(start * height * width, (start + most) * height * width)
            grid = (min(most, time - start), height, width)
            into = features[rows.start // merge**2 : rows.stop // merge**2]
            yield Piece(replace(item, pixels=item.pixels[rows], grid=grid), into)

    def _batches(self, pieces: Many[Piece]) -> Iterator[Many[Piece]]:
        """Pieces in runs of a bounded size; one that is larger goes alone."""
        batch: list[Piece] = []
        for piece in pieces:
            if batch and sum(len(each.features) for each in (*batch, piece)) > ENCODE_TOKENS:
                yield batch
                batch = []
            batch.append(piece)
        yield batch

    def _encode(self, pieces: Many[Piece]) -> None:
        """One forward of the tower, whose features go where each piece wants them."""
        items = [piece.item for piece in pieces]
        grid = torch.tensor([item.grid for item in items])
        pixels = torch.cat([normalised(item, self.device).to(self.dtype) for item in items])
        out = self._visual(pixels, grid_thw=grid, **self._vision_inputs(grid))
        levels = [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]
        counts = [len(piece.features) for piece in pieces]
        parts = zip(*(level.split(counts) for level in levels), strict=True)
        for piece, part in zip(pieces, parts, strict=True):
            torch.cat(part, dim=-1, out=piece.features)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        batch: AttentionBatch,
        media_rows: Tensor,
        features: Tensor,
    ) -> Tensor:
        """One packed forward pass.

        `embeds` (T, hidden), overwritten at `media_rows` (M,) by `features` (M, hidden * (1 +
        levels)); `positions` (3, T). Returns the last hidden states (T, hidden).
        """
        deepstack: dict[str, Any] = {}
        if len(media_rows):
            base, *levels = features.split(self.hidden_size, dim=-1)
            embeds = embeds.index_copy(0, media_rows, base)
            if levels:
                # The mask is unused: `_add_deepstack` adds at rows that are known already.
                deepstack = {"visual_pos_masks": media_rows, "deepstack_visual_embeds": levels}
        with use_batch(batch):
            out = self._lm(
                inputs_embeds=embeds[None],
                position_ids=positions[:, None],
                use_cache=False,
                **deepstack,
            )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(S, hidden) -> (S, vocabulary) float32"""
        logits: Tensor = self._head(hidden).float()
        return logits

    def _add_deepstack(self, lm: Any, hidden: Tensor, rows: Tensor, level: Tensor) -> Tensor:
        """Stands in for the model's own step, whose mask indexing waits for the device."""
        return hidden.index_add(1, rows, level[None].to(hidden.dtype))

    def _vision_inputs(self, grid: Tensor) -> dict[str, Any]:
        """The tower's data-dependent arguments, computed on the host. `grid` (items, 3)."""
        vision = self.config.vision_config
        merge = vision.spatial_merge_size
        cu_seqlens = get_vision_cu_seqlens(grid)
        tensors = {
            "cu_seqlens": cu_seqlens,
            "position_ids": get_vision_position_ids(grid, merge),
        }
        inputs: dict[str, Any] = {"max_seqlen": int(cu_seqlens.diff().max())}
        if self.config.model_type == "qwen3_vl":
            indices, weights = get_vision_interpolation_indices_and_weights(
                grid,
                num_grid_per_side=self._visual.num_grid_per_side,
                mode=self._visual.interpolation_mode,
                align_corners=self._visual.interpolation_align_corners,
                spatial_merge_size=merge,
            )
            tensors |= {"interp_indices": indices, "interp_weights": weights}
        if self.config.model_type == "qwen2_5_vl":
            index, cu_window = get_vision_window_index(
                grid, merge, vision.window_size, vision.patch_size
            )
            tensors |= {"window_index": index, "cu_window_seqlens": cu_window}
            inputs["max_window_seqlen"] = int(cu_window.diff().max())
        return inputs | {name: stage(tensor, self.device) for name, tensor in tensors.items()}


def normalised(item: MediaItem, device: torch.device) -> Tensor:
    """(patches, columns) float32 as the tower sees them, equal to the bit to the checkpoint's
    processor: a step's pictures only, since this is four times the bytes."""
    mean, std = (
        stage(np.asarray(values, dtype=np.float32)[:, None], device)
        for values in (item.mean, item.std)
    )
    pixels = stage(item.pixels, device).view(len(item.pixels), len(item.mean), -1)
    return pixels.to(torch.float32).sub_(mean).div_(std).flatten(1)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that cost the host no memory before they are written: numpy's, unlike torch's."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    empty = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(empty).view(dtype).view(shape)
