"""The demo's architecture, and the training-only heads that teach it to look.

``new_model`` makes the Qwen3-VL model; ``Coach`` wraps it for training: it runs vision and language
over packed pictures and adds the auxiliary losses, which ``export.py`` throws away. Used by
``train.py`` and ``export.py``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from training.scenes import COLOUR_NAMES, DIRECTION_NAMES, KIND_NAMES

KINDS, COLOURS, WAYS = len(KIND_NAMES), len(COLOUR_NAMES), len(DIRECTION_NAMES)
TOP = 10  # counts 0 to 9
READ_LAYER = 1  # the count head reads after this decoder layer, so that later ones can use it
CONTEXT = 8192


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of one token, which must exist."""
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def new_config(tokenizer: PreTrainedTokenizerBase) -> Qwen3VLConfig:
    def token(name: str) -> int:
        return token_id(tokenizer, name)

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "initializer_range": 0.04,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_interleaved": True,
            "mrope_section": [12, 10, 10],
        },
        "tie_word_embeddings": True,
        "pad_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
    }
    vision = {
        "depth": 6,
        "initializer_range": 0.04,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_heads": 4,
        "out_hidden_size": 192,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [3],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration(new_config(tokenizer))


@dataclass
class Batch:
    """What one training step needs; rows are sequences, all pictures are packed in row order."""

    ids: Tensor  # (rows, length)
    labels: Tensor  # (rows, length), -100 where no loss
    segments: Tensor  # (rows, length): 0 shared, k for branch k, -1 for padding
    positions: Tensor  # (3, rows, length)
    pixels: Tensor  # (patches, 1536), float in -1 to 1
    grids: Tensor  # (pictures, 3)
    cell_kind: Tensor  # (cells,), KINDS where nothing is
    cell_colour: Tensor  # (cells,), COLOURS where nothing is
    cell_mass: Tensor  # (cells, KINDS): the share of each kind's things in the cell
    ends: Tensor  # (rows_with_media, 2): row and column of the last <|vision_end|>
    counts: Tensor  # (rows_with_media, KINDS)
    colours: Tensor  # (rows_with_media, KINDS), -100 where absent
    motion: Tensor  # (rows_with_media, 3): kind, colour, way of what moves, or -100


def attention_mask(segments: Tensor) -> Tensor:
    """Causal, and a branch sees the shared prefix and itself."""
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    seen = causal & (key >= 0) & ((key == 0) | (key == query))
    return (seen | torch.eye(length, dtype=torch.bool))[:, None]


def soften(features: Tensor) -> Tensor:
    """The same values with a tenth of the gradient: the cell losses lead the vision tower."""
    return features * 0.1 + features.detach() * 0.9


class Coach(nn.Module):
    """The model and its auxiliary heads."""

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        width = int(model.config.get_text_config().hidden_size)
        self.cell_head = nn.Linear(width, KINDS + 1 + COLOURS + 1 + KINDS)
        self.count_head = nn.Linear(width, KINDS * TOP)
        self.colour_head = nn.Linear(width, KINDS * COLOURS)
        self.motion_head = nn.Linear(width, KINDS + COLOURS + WAYS)
        self.stop = int(model.config.get_text_config().eos_token_id)
        self.read: Tensor | None = None
        layer = model.model.language_model.layers[READ_LAYER]
        layer.register_forward_hook(self.keep)
        embed = model.model.visual.patch_embed
        embed.forward = self.embed_patches

    def keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.read = output

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """The patch convolution as one matrix product, which is faster on a CPU."""
        conv = self.model.model.visual.patch_embed.proj
        return F.linear(pixels, conv.weight.flatten(1), conv.bias)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """All losses of a batch, by name."""
        if not len(batch.ends) and len(batch.pixels):  # first the eyes alone, which is quick
            seen = self.model.model.visual(batch.pixels, grid_thw=batch.grids)
            return self.cell_losses(seen.pooler_output, batch)
        if (batch.labels == -100).all():
            return {**self.count_only(batch), **self.end_losses(batch)}
        hidden, features = self.look(batch)
        losses = {}
        wanted = batch.labels[:, 1:]
        spoken = wanted != -100
        if spoken.any():
            logits = self.model.lm_head(hidden[:, :-1][spoken])
            stops = (wanted == self.stop).sum()
            total = F.cross_entropy(logits, wanted[spoken], reduction="sum")
            losses["answer"] = total / stops / 3
        if features is not None:
            losses.update(self.cell_losses(features, batch))
            losses.update(self.end_losses(batch))
        return losses

    def best_tokens(self, batch: Batch) -> Tensor:
        """The most likely next token at every place."""
        hidden, _ = self.look(batch)
        best: Tensor = self.model.lm_head(hidden).argmax(-1)
        return best

    def count_only(self, batch: Batch) -> dict[str, Tensor]:
        """Only the eyes and the layers below the count head: a cheap way to learn to count."""
        decoder = self.model.model.language_model
        layers = decoder.layers
        decoder.layers = layers[: READ_LAYER + 1]
        _, features = self.look(batch)
        decoder.layers = layers
        assert features is not None
        return self.cell_losses(features, batch)

    def look(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The last hidden states, and what the vision tower made of the pictures."""
        model, config = self.model.model, self.model.config
        embeds = model.get_input_embeddings()(batch.ids)
        places = (batch.ids == config.image_token_id) | (batch.ids == config.video_token_id)
        deep = features = None
        if len(batch.pixels):
            seen = model.visual(batch.pixels, grid_thw=batch.grids)
            features, deep = seen.pooler_output, seen.deepstack_features
            embeds = embeds.masked_scatter(places[..., None], soften(features))
            deep = [soften(feature) for feature in deep]
        hidden = model.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask(batch.segments),
            position_ids=batch.positions,
            visual_pos_masks=places,
            deepstack_visual_embeds=deep,
            use_cache=False,
        ).last_hidden_state
        return hidden, features

    def cell_losses(self, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What every merged visual token shows."""
        kind, colour, mass = self.cell_head(features).split((KINDS + 1, COLOURS + 1, KINDS), 1)
        frames = batch.grids[:, 0]
        sizes = batch.grids.prod(1) // 4
        owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        none = torch.zeros(len(sizes), KINDS)
        sums = none.index_add(0, owner, mass) / frames[:, None]
        wanted = none.index_add(0, owner, batch.cell_mass) / frames[:, None]
        return {
            "cell_sum": F.smooth_l1_loss(sums, wanted, beta=0.5) * KINDS,
            "cell_kind": F.cross_entropy(kind, batch.cell_kind),
            "cell_colour": F.cross_entropy(colour, batch.cell_colour),
            "cell_mass": (mass - batch.cell_mass).square().sum(1).mean(),
        }

    def end_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Counts and colours of every kind, and what moves, read at the last <|vision_end|>."""
        assert self.read is not None
        state = self.read[batch.ends[:, 0], batch.ends[:, 1]]
        logits = self.count_head(state).view(-1, TOP)
        wanted = batch.counts.flatten()
        weight = torch.where(wanted > 0, 1.0, 0.15)
        each = F.cross_entropy(logits, wanted, reduction="none")
        shades = self.colour_head(state).view(-1, COLOURS)
        moves = self.motion_head(state).split((KINDS, COLOURS, WAYS), 1)
        motion = [
            F.cross_entropy(part, batch.motion[:, i], reduction="sum")
            for i, part in enumerate(moves)
        ]
        many = (batch.motion[:, 0] >= 0).sum().clamp(min=1)
        shown = (batch.colours >= 0).sum().clamp(min=1)
        hit = (logits.argmax(1) == wanted)[wanted > 0]
        return {
            "count": (each * weight).sum() / weight.sum(),
            "colour": F.cross_entropy(shades, batch.colours.flatten(), reduction="sum") / shown,
            "motion": torch.stack(motion).sum() / many,
            "count_hits": hit.float().mean().detach() if len(hit) else torch.zeros(()),
        }
