"""The demo's architecture, and the forward pass with which it learns to speak.

``new_model`` makes the Qwen3-VL model; ``Speaker`` runs its language over packed rows. Used by
``look.py``, ``train.py`` and ``export.py``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

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
    return (seen | torch.eye(length, dtype=torch.bool))[:, None]


def float_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention in float32 under autocast: the CPU's bfloat16 attention is slow backwards."""
    query, key, value = query.float(), key.float(), value.float()
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register("float_sdpa", float_attention)


class Speaker(nn.Module):
    """The model while it learns words; its eyes stand still, and ``data.py`` looks with them."""

    def __init__(self, model: Qwen3VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.stop = int(model.config.get_text_config().eos_token_id)
        model.model.language_model.config._attn_implementation = "float_sdpa"

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
        embeds = model.get_input_embeddings()(batch.ids)
        places = (batch.ids == config.image_token_id) | (batch.ids == config.video_token_id)
        embeds = embeds.masked_scatter(places[..., None], batch.tokens)
        hidden: Tensor = model.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask(batch.segments),
            position_ids=batch.positions,
            visual_pos_masks=places,
            deepstack_visual_embeds=[batch.deep],
            use_cache=False,
        ).last_hidden_state
        return hidden
