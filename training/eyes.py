"""The vision tower in training: a batched forward over its own weights, and what it must see.

``Sight`` runs pictures of one grid together, faster than the tower's own packed forward and equal
to it (``check_packing.py`` compares). ``Teacher`` holds the heads that read labels of
``targets.py`` off patches and merged tokens; they are thrown away after training. Used by
``look.py`` (the eyes alone) and ``model.py`` (with words).
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionBlock,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from training.drawing import KINDS
from training.scenes import COLOUR_NAMES, DIRECTION_NAMES
from training.targets import IGNORE, NOTHING, Painted

THINGS, COLOURS, OWN, WAYS = len(KINDS), len(COLOUR_NAMES), 10, len(DIRECTION_NAMES) + 1
PATCH_PARTS = (NOTHING + 1, COLOURS, 2, 1, THINGS)  # kind, colour, offset, splat, centres
CELL_PARTS = (NOTHING + 1, COLOURS, OWN, WAYS, THINGS, 2)  # …, own, way, mass, place
DEEP_PARTS = (NOTHING + 1, COLOURS)
NEAR = 0.06  # how far a place may be off
EMPTY = 0.4  # the weight of a place that shows nothing
WEIGHTS = {
    "patch_kind": 1.0,
    "patch_colour": 0.3,
    "patch_offset": 0.3,
    "patch_splat": 0.5,
    "patch_centres": 0.5,
    "kind": 1.0,
    "colour": 0.4,
    "own": 2.0,
    "way": 0.5,
    "place": 1.0,
    "mass": 1.0,
    "sum": 0.1,
    "deep": 0.3,
}


@dataclass
class Views:
    """Pictures (or pairs of frames) of one grid, and their labels: rows are pictures."""

    pixels: Tensor  # (B, patches, 1536), bytes
    grid: tuple[int, int]  # patches down and across
    clips: bool
    labels: dict[str, Tensor]


def views(
    pixels: list[np.ndarray], grid: tuple[int, int], clips: bool, labels: list[Painted]
) -> Views:
    names = [field.name for field in fields(Painted)]
    stacked = {
        name: torch.from_numpy(np.stack([getattr(one, name) for one in labels])) for name in names
    }
    return Views(torch.from_numpy(np.stack(pixels)), grid, clips, stacked)


@dataclass
class Seen:
    """What the tower makes of a batch."""

    read: Tensor  # (B, patches, width) at the deepstack level
    tokens: Tensor  # (B, cells, out)
    deep: Tensor  # (B, cells, out)


class Sight:
    """The tower's forward for pictures of one grid."""

    def __init__(self, visual: Qwen3VLVisionModel) -> None:
        self.visual = visual
        self.level = int(visual.config.deepstack_visual_indexes[0])
        self.plans: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def plan(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Position indices and weights, cosines and sines of a grid."""
        if grid not in self.plans:
            visual = self.visual
            thw = torch.tensor([[1, *grid]])
            where, weight = get_vision_interpolation_indices_and_weights(
                thw,
                num_grid_per_side=visual.num_grid_per_side,
                mode=visual.interpolation_mode,
                align_corners=visual.interpolation_align_corners,
                spatial_merge_size=2,
                kwargs={},
            )
            places = get_vision_position_ids(thw, 2, kwargs={})
            cos, sin = visual.rotary_pos_emb(torch.zeros(1), places)
            self.plans[grid] = (where, weight[:, :, None], cos, sin)
        return self.plans[grid]

    def block(self, block: Qwen3VLVisionBlock, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attn = block.attn
        rows, patches, width = x.shape
        heads = attn.qkv(block.norm1(x)).view(rows, patches, 3, attn.num_heads, -1)
        query, key, value = heads.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        # floats: the CPU's bfloat16 attention is slow backwards
        query, key, value = (part.float().transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + attn.proj(mixed.transpose(1, 2).reshape(rows, patches, width))
        spread: Tensor = x + block.mlp(block.norm2(x))
        return spread

    def __call__(self, pixels: Tensor, grid: tuple[int, int]) -> Seen:
        """``pixels`` is (B, patches, 1536) in -1 to 1."""
        visual = self.visual
        where, weight, cos, sin = self.plan(grid)
        conv = visual.patch_embed.proj
        x = F.linear(pixels, conv.weight.flatten(1), conv.bias)
        x = x + (visual.pos_embed(where) * weight).sum(1)
        read = deep = x
        for level, block in enumerate(visual.blocks):
            assert isinstance(block, Qwen3VLVisionBlock)
            x = self.block(block, x, cos, sin)
            if level == self.level:
                read = x
                deep = visual.deepstack_merger_list[0](x)
        cells = (x.shape[0], x.shape[1] // 4, -1)
        return Seen(read, visual.merger(x).view(cells), deep.view(cells))


def normal(pixels: Tensor) -> Tensor:
    """Bytes to floats as the processor does: mean and deviation 0.5."""
    return (pixels.float() - 127.5) / 127.5


class Teacher(nn.Module):
    """The heads, and the losses of what they read."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        read = nn.Linear(width, sum(PATCH_PARTS))
        self.patch = nn.Sequential(nn.LayerNorm(width), read)
        self.cell = nn.Linear(out, sum(CELL_PARTS))
        self.deep = nn.Linear(out, sum(DEEP_PARTS))
        for head in (read, self.cell, self.deep):
            nn.init.zeros_(head.weight)

    def forward(self, seen: Seen, views: Views) -> dict[str, Tensor]:
        """All losses, by the names of ``WEIGHTS``."""
        wanted = views.labels
        kind, colour, offset, splat, centres = self.patch(seen.read).split(PATCH_PARTS, -1)
        there = wanted["kind"] < NOTHING
        losses = {
            "patch_kind": entropy(kind, wanted["kind"]),
            "patch_colour": entropy(colour, wanted["colour"]),
            "patch_offset": F.smooth_l1_loss(offset[there], wanted["offset"][there]),
            "patch_splat": 4
            * F.binary_cross_entropy_with_logits(splat[..., 0], wanted["splat"].clamp(max=1)),
            "patch_centres": 4
            * THINGS
            * F.binary_cross_entropy_with_logits(centres, wanted["centres"].clamp(max=1)),
        }
        kind, colour, own, way, mass, place = self.cell(seen.tokens).split(CELL_PARTS, -1)
        deep_kind, deep_colour = self.deep(seen.deep).split(DEEP_PARTS, -1)
        kinds, colours = wanted["cell_kind"], wanted["cell_colour"]
        shown = kinds < NOTHING
        losses |= {
            "kind": entropy(kind, kinds),
            "colour": entropy(colour, colours),
            "own": entropy(own, wanted["cell_own"]),
            "place": F.smooth_l1_loss(place[shown], wanted["cell_place"][shown], beta=0.05) * 4,
            "mass": (mass - wanted["mass"]).square().sum(-1).mean() * 2,
            "sum": F.smooth_l1_loss(mass.sum(1), wanted["mass"].sum(1), beta=0.5) * THINGS,
            "deep": entropy(deep_kind, kinds) + entropy(deep_colour, colours) * 0.4,
        }
        if views.clips:
            losses["way"] = entropy(way, wanted["cell_way"])
        return losses

    @torch.no_grad()
    def hits(self, seen: Seen, views: Views) -> dict[str, tuple[int, int]]:
        """(right, asked) by name: kinds and colours by cell, the rest by thing or character."""
        kind, colour, own, way, _, place = self.cell(seen.tokens).split(CELL_PARTS, -1)
        wanted = views.labels
        there = wanted["cell_kind"] < NOTHING
        tally = {"kind": (kind.argmax(-1) == wanted["cell_kind"])[there]}
        near = (place - wanted["cell_place"]).abs().amax(-1) < NEAR
        tally["place"] = near[there]
        shaded = wanted["cell_colour"] != IGNORE
        tally["colour"] = (colour.argmax(-1) == wanted["cell_colour"])[shaded]
        if views.clips:
            return counted(tally | {"way": (way.argmax(-1) == wanted["cell_way"])[there]})
        thing = wanted["cell_kind"] < THINGS
        right = own.argmax(-1) == wanted["cell_own"]
        few = wanted["cell_own"] < 5
        tally |= {"own1-4": right[thing & few], "own5-9": right[thing & ~few]}
        boxed = wanted["cell_kind"] == NOTHING - 1
        glyph = there & ~thing & ~boxed
        tally |= {"box": right[boxed], "ordinal": right[glyph]}
        tally["glyph"] = (kind.argmax(-1) == wanted["cell_kind"])[glyph]
        return counted(tally)


def entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """The mean over what is wanted, nought where nothing is; empty places count less."""
    weight = torch.ones(logits.shape[-1])
    weight[NOTHING:] = EMPTY
    total = F.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), weight, ignore_index=IGNORE, reduction="sum"
    )
    return total / weight[wanted[wanted != IGNORE]].sum().clamp(min=1)


def counted(tally: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    return {name: (int(hits.sum()), hits.numel()) for name, hits in tally.items()}
