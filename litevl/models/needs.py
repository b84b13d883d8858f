"""What a model needs of a machine, from its config alone: no weight is read or downloaded.

`cli.py` asks before it loads, `info.py` to tell it. The parameters are counted on a model without
memory, so that the arithmetic is the same for every family and every hub.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

# Bytes of one step beside weights and cache: an allowance, measured nowhere yet.
SCRATCH = 3 * 2**29


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Counts of numbers; `weights` and `kv` turn them into bytes."""

    parameters: int
    vision_parameters: int
    head_copy: int  # a tied output layer is packed beside its plain copy, on the CPU
    layers: int
    kv_heads: int
    head_dim: int
    context: int

    def weights(self, dtype: torch.dtype, device: str) -> int:
        """Bytes of the loaded model."""
        copy = self.head_copy if device == "cpu" and dtype == torch.float32 else 0
        return (self.parameters + copy) * dtype.itemsize

    def kv(self, dtype: torch.dtype, tokens: int = 1) -> int:
        """Bytes of the keys and values of so many tokens."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize * tokens

    def tokens_beside(self, memory: int, dtype: torch.dtype, share: float = 0.9) -> int:
        """How many tokens' keys and values a card of so many bytes holds beside the weights."""
        room = int(memory * share) - self.weights(dtype, "cuda") - SCRATCH
        return max(0, room // self.kv(dtype))


def needs_of(config: Any) -> Needs:
    """Count what a checkpoint's config describes."""
    build: Any = AutoModelForImageTextToText
    with torch.device("meta"):
        model = build.from_config(config)
    text = config.get_text_config()
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return Needs(
        parameters=sum(each.numel() for each in model.parameters()),
        vision_parameters=sum(each.numel() for each in model.model.visual.parameters()),
        head_copy=head.numel() if head is embedding else 0,
        layers=text.num_hidden_layers,
        kv_heads=text.num_key_value_heads,
        head_dim=head_dim(text),
        context=text.max_position_embeddings,
    )


def head_dim(text: Any) -> int:
    """Of keys and values, by a text config that need not say it."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
