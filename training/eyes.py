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
)
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from training.drawing import KINDS
from training.scenes import COLOUR_NAMES, DIRECTION_NAMES
from training.targets import IGNORE, NOTHING, Painted

BOX = NOTHING - 1
THINGS, COLOURS, OWN, WAYS = len(KINDS), len(COLOUR_NAMES), 10, len(DIRECTION_NAMES) + 1
PATCH_PARTS = (NOTHING + 1, COLOURS, 2, 1, THINGS)  # kind, colour, offset, splat, centres
EDGES = (0.2, 0.37, 0.5, 0.63, 0.8)  # of the bands of a picture, across and down
BANDS = len(EDGES) + 1
CELL_PARTS = (NOTHING + 1, COLOURS, OWN, WAYS, THINGS, BANDS, BANDS)  # …, mass, across, down
DEEP_PARTS = (NOTHING + 1, COLOURS, BANDS, BANDS)
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
    "box": 0.25,
    "way": 0.7,
    "place": 0.5,
    "mass": 1.0,
    "sum": 0.1,
    "deep": 0.3,
}


@dataclass
class Views:
    """Pictures (or pairs of frames) of one grid, and their labels: rows are pictures."""

    pixels: Tensor  # (B, patches, 1536), bytes; 768 where both frames are the same
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


def through(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    norm1: Tensor,
    shift1: Tensor,
    norm2: Tensor,
    shift2: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor,
    proj: Tensor,
    proj_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
) -> Tensor:
    """One block of the tower, its weights in the block's own order. Attention is written out:
    under autocast the CPU's fused one is several times slower, above all backwards."""
    rows, patches, width = x.shape
    near = F.layer_norm(x, (width,), norm1, shift1, 1e-6)
    parts = F.linear(near, qkv, qkv_bias).view(rows, patches, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = parts.float().unbind(0)
    query, key = query * cos + turned(query) * sin, key * cos + turned(key) * sin
    query, key, value = (part.reshape(rows * heads, patches, -1) for part in (query, key, value))
    scores = torch.bmm(query, key.transpose(1, 2)).float() * (width // heads) ** -0.5
    mixed = torch.bmm(scores.softmax(-1), value).view(rows, heads, patches, -1)
    x = x + F.linear(mixed.transpose(1, 2).reshape(rows, patches, width), proj, proj_bias)
    near = F.layer_norm(x, (width,), norm2, shift2, 1e-6)
    wide = F.gelu(F.linear(near, up, up_bias), approximate="tanh")
    return x + F.linear(wide, down, down_bias)


def turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class Sight:
    """The tower's forward for pictures of one grid."""

    def __init__(self, visual: Qwen3VLVisionModel, compiled: bool = False) -> None:
        self.visual = visual
        self.level = int(visual.config.deepstack_visual_indexes[0])
        self.plans: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self.compiled = compiled
        self.through = torch.compile(through) if compiled else through

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
            torch._dynamo.mark_dynamic(cos, 0)
            torch._dynamo.mark_dynamic(sin, 0)
            self.plans[grid] = (where, weight[:, :, None], cos, sin)
        return self.plans[grid]

    def __call__(self, pixels: Tensor, grid: tuple[int, int]) -> Seen:
        """``pixels`` is (B, patches, 1536) in -1 to 1, or 768 where both frames are the same."""
        visual = self.visual
        where, weight, cos, sin = self.plan(grid)
        conv = visual.patch_embed.proj
        filters = conv.weight if pixels.shape[2] == 1536 else conv.weight.sum(2)
        x = F.linear(pixels, filters.flatten(1), conv.bias)
        x = x + (visual.pos_embed(where) * weight).sum(1)
        read = deep = x
        for level, block in enumerate(visual.blocks):
            assert isinstance(block, Qwen3VLVisionBlock)
            if self.compiled:
                torch._dynamo.mark_dynamic(x, 1)
            x = self.through(x, cos, sin, block.attn.num_heads, *block.parameters())
            if level == self.level:
                read = x
                deep = visual.deepstack_merger_list[0](x)
        cells = (x.shape[0], x.shape[1] // 4, -1)
        return Seen(read, visual.merger(x).view(cells), deep.view(cells))


def normal(pixels: Tensor) -> Tensor:
    """Bytes to floats as the processor does: mean and deviation 0.5."""
    return pixels.float().sub_(127.5).div_(127.5)


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
        kind, colour, own, way, mass, *place = self.cell(seen.tokens).split(CELL_PARTS, -1)
        deep_kind, deep_colour, *deep_place = self.deep(seen.deep).split(DEEP_PARTS, -1)
        kinds, colours = wanted["cell_kind"], wanted["cell_colour"]
        across, down = bands(wanted)
        losses |= {
            "kind": entropy(kind, kinds),
            "colour": entropy(colour, colours),
            "own": entropy(own, wanted["cell_own"]),
            "box": entropy(own, wanted["cell_own"].where(kinds == BOX, IGNORE)),
            "place": entropy(place[0], across) + entropy(place[1], down),
            "mass": (mass - wanted["mass"]).square().sum(-1).mean() * 2,
            "sum": F.smooth_l1_loss(mass.sum(1), wanted["mass"].sum(1), beta=0.5) * THINGS,
            "deep": entropy(deep_kind, kinds)
            + (entropy(deep_colour, colours) + entropy(deep_place[0], across)) * 0.4
            + entropy(deep_place[1], down) * 0.4,
        }
        if views.clips:
            losses["way"] = entropy(way, wanted["cell_way"])
        return losses

    @torch.no_grad()
    def hits(self, seen: Seen, views: Views) -> dict[str, tuple[int, int]]:
        """(right, asked) by name: kinds and colours by cell, the rest by thing or character."""
        kind, colour, own, way, _, *place = self.cell(seen.tokens).split(CELL_PARTS, -1)
        wanted = views.labels
        there = wanted["cell_kind"] < NOTHING
        tally = {"kind": (kind.argmax(-1) == wanted["cell_kind"])[there]}
        across, down = (part.argmax(-1) for part in place)
        wanted_across, wanted_down = bands(wanted)
        tally["place"] = ((across == wanted_across) & (down == wanted_down))[there]
        shaded = wanted["cell_colour"] != IGNORE
        tally["colour"] = (colour.argmax(-1) == wanted["cell_colour"])[shaded]
        if views.clips:
            return counted(tally | {"way": (way.argmax(-1) == wanted["cell_way"])[there]})
        thing = wanted["cell_kind"] < THINGS
        right = own.argmax(-1) == wanted["cell_own"]
        few = wanted["cell_own"] < 5
        tally |= {"own1-4": right[thing & few], "own5-9": right[thing & ~few]}
        boxed = wanted["cell_kind"] == BOX
        glyph = there & ~thing & ~boxed
        tally |= {"box": right[boxed], "ordinal": right[glyph]}
        tally["glyph"] = (kind.argmax(-1) == wanted["cell_kind"])[glyph]
        return counted(tally)


def bands(wanted: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(B, cells) each: in which band across and down lies what a cell shows. Bands and not numbers:
    a share of the picture is a feature so quiet that the language model learns nothing from it."""
    edges = torch.tensor(EDGES)
    band = torch.bucketize(wanted["cell_place"].contiguous(), edges)
    band = band.masked_fill((wanted["cell_kind"] == NOTHING)[..., None], IGNORE)
    return band[..., 0], band[..., 1]


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
