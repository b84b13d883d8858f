"""The demo's architecture, and the forward pass with which it learns to speak.

``new_model`` makes the Qwen3-VL model; ``Speaker`` runs its language over packed rows. Used by
``look.py``, ``train.py`` and ``export.py``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

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


def eyes_of(average: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tower's weights among the averages that ``look.py`` saves."""
    start = "visual."
    return {k.removeprefix(start): v for k, v in average.items() if k.startswith(start)}


@dataclass
class Batch:
    """What one training step needs; rows are sequences."""

    ids: Tensor  # (rows, length)
    labels: Tensor  # (rows, length), -100 where no loss
    segments: Tensor  # (rows, length): 0 shared, k for branch k, -1 for padding
    positions: Tensor  # (3, rows, length)
    tokens: Tensor  # (visual places, width): what the eyes make of all pictures, in row order
    deep: Tensor  # the same of the deepstack level


def attention_mask(segments: Tensor) -> Tensor:
    """Causal, and a branch sees the shared prefix and itself."""
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    seen = causal & (key >= 0) & ((key == 0) | (key == query))
    return seen | torch.eye(length, dtype=torch.bool)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def through(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    out_weight: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    norm1: Tensor,
    norm2: Tensor,
) -> Tensor:
    """One layer of the language model, its weights in the layer's own order; as in ``eyes.py``,
    attention is written out, and the query heads of one key stand in rows below each other."""
    rows, length, _ = x.shape
    wide = query_norm.shape[0]
    many = key_weight.shape[0] // wide
    near = rms(x, norm1)
    query = rms(F.linear(near, query_weight).view(rows, length, -1, wide), query_norm)
    key = rms(F.linear(near, key_weight).view(rows, length, many, wide), key_norm)
    value = F.linear(near, value_weight).view(rows, length, many, wide)
    query, key = query * cos + turned(query) * sin, key * cos + turned(key) * sin
    query = query.transpose(1, 2).reshape(rows * many, -1, wide)
    key, value = (part.transpose(1, 2).reshape(rows * many, length, wide) for part in (key, value))
    scores = torch.bmm(query, key.transpose(1, 2)).float().view(rows, -1, length, length)
    scores = scores * wide**-0.5 + mask[:, None]
    shares = scores.softmax(-1).view(rows * many, -1, length)
    mixed = torch.bmm(shares, value).view(rows, -1, length, wide).transpose(1, 2)
    x = x + F.linear(mixed.reshape(rows, length, -1), out_weight)
    near = rms(x, norm2)
    return x + F.linear(F.silu(F.linear(near, gate)) * F.linear(near, up), down)


class Speaker(nn.Module):
    """The model while it learns words; its eyes stand still, and ``data.py`` looks with them."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, compiled: bool = False) -> None:
        super().__init__()
        self.model, self.compiled = model, compiled
        self.through = torch.compile(through) if compiled else through
        self.stop = int(model.config.get_text_config().eos_token_id)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of an answer, whose tokens count together."""
        hidden = self.listen(batch)
        wanted = batch.labels[:, 1:]
        spoken = wanted != -100
        logits = self.model.lm_head(hidden[:, :-1][spoken])
        stops = (wanted == self.stop).sum()
        return F.cross_entropy(logits, wanted[spoken], reduction="sum") / stops / 3

    @torch.no_grad()
    def best_tokens(self, batch: Batch) -> Tensor:
        """The most likely next token at every place."""
        best: Tensor = self.model.lm_head(self.listen(batch)).argmax(-1)
        return best

    def listen(self, batch: Batch) -> Tensor:
        """The last hidden states."""
        model, config = self.model.model, self.model.config
        x = model.get_input_embeddings()(batch.ids)
        places = (batch.ids == config.image_token_id) | (batch.ids == config.video_token_id)
        x = x.masked_scatter(places[..., None], batch.tokens)
        cos, sin = (
            part[:, :, None] for part in model.language_model.rotary_emb(x, batch.positions)
        )
        mask = torch.zeros(batch.segments.shape[0], *[batch.segments.shape[1]] * 2)
        mask.masked_fill_(~attention_mask(batch.segments), -1e9)
        if self.compiled:
            for part in (x, cos, sin):
                torch._dynamo.mark_dynamic(part, 1)
            torch._dynamo.mark_dynamic(mask, 1)
            torch._dynamo.mark_dynamic(mask, 2)
        for depth, layer in enumerate(model.language_model.layers):
            x = self.through(x, cos, sin, mask, *layer.parameters())
            if depth == 0:
                x = x + torch.zeros_like(x).masked_scatter(places[..., None], batch.deep)
        return rms(x, model.language_model.norm.weight)
