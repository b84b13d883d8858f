"""Small random checkpoints of every family, written on the spot, as complete as the real releases.

`make_checkpoint` is for every test that needs a model: transformers loads its folder offline with
`from_pretrained`. The weights are scaled so that greedy text neither collapses into one token nor
ignores the picture, and control tokens are never the most likely ones (their rows in the output
layer are zero). Knows nothing of litevl.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForImageTextToText

Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
FAMILIES: tuple[Family, ...] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_ADDED_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>")

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = (
    "system\nYou are a helpful assistant.",
    "user\nWhat is in the picture? How many red circles are there, and what moves in the clip?",
    "assistant\nThere are three red circles and the blue square moves to the right.",
    "图中有三个红色的圆。有几个蓝色的方块？",
    "<0.5 seconds><1.0 seconds>",
)

# The ChatML templates of the real releases, without tools.
_MEDIA = (
    "{%- macro media(kind) -%}<|vision_start|><|{{ kind }}_pad|><|vision_end|>{%- endmacro -%}"
    "{%- macro body(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- media('image') -}}"
    "{%- elif part.type == 'video' or 'video' in part -%}{{- media('video') -}}"
    "{%- elif 'text' in part -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
_DEFAULT_SYSTEM = (
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}"
)
_TURNS = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}{{- body(message.content) -}}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

_HIDDEN, _LAYERS, _VISION_HIDDEN, _VISION_DEPTH = 64, 4, 32, 4


def make_checkpoint(family: Family, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write a checkpoint to `folder` and return it; `overrides` go into its text config."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _write_tokenizer(folder, family)
    _write_processor(folder, family)
    ids = {name: _token_id(tokenizer, f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = AutoConfig.for_model(
        family,
        text_config=_text_config(family, tokenizer) | overrides,
        vision_config=_vision_config(family),
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=_token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    build: Any = AutoModelForImageTextToText  # its factories carry no types
    model = build.from_config(config, dtype=torch.float32)
    _initialise(model, [_token_id(tokenizer, token) for token in CONTROL_TOKENS])
    model.save_pretrained(folder)
    _write_json(folder / "generation_config.json", _generation_config(tokenizer))
    return folder


def _text_config(family: Family, tokenizer: Tokenizer) -> dict[str, Any]:
    sections = [4, 2, 2] if family == "qwen3_vl" else [2, 3, 3]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    config = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": _token_id(tokenizer, "<|endoftext|>"),
        "eos_token_id": _token_id(tokenizer, "<|im_end|>"),
    }
    if family == "qwen3_vl":
        rope["mrope_interleaved"] = True
        config["head_dim"] = 16
    return config | {"rope_parameters": rope}


def _vision_config(family: Family) -> dict[str, Any]:
    common = {"depth": _VISION_DEPTH, "num_heads": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        return common | {"embed_dim": _VISION_HIDDEN, "hidden_size": _HIDDEN, "patch_size": 14}
    common |= {"hidden_size": _VISION_HIDDEN, "intermediate_size": 2 * _VISION_HIDDEN}
    common |= {"out_hidden_size": _HIDDEN}
    if family == "qwen2_5_vl":
        windows = {"window_size": 56, "fullatt_block_indexes": [1, 3]}
        return common | windows | {"patch_size": 14, "tokens_per_second": 2}
    levels = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64}
    return common | levels | {"patch_size": 16}


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    assert index is not None
    return index


@torch.no_grad()
def _initialise(model: Any, silent: list[int]) -> None:
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.02)
        elif "q_norm" in name or "k_norm" in name:  # Qwen3-VL: sharpen what its norms flatten
            weight.fill_(1.8)
        elif weight.dim() > 1:
            fan_in = weight[0].numel()
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.4
            torch.nn.init.normal_(weight, std=gain * fan_in**-0.5)
    embeddings = model.get_input_embeddings().weight
    torch.nn.init.normal_(embeddings, std=0.5)
    head = model.get_output_embeddings().weight
    head[silent] = 0


def _write_tokenizer(folder: Path, family: Family) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=384, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    special = [AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS]
    plain = [AddedToken(t, special=False, normalized=False) for t in PLAIN_ADDED_TOKENS]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = _tokenizer_config(tokenizer, family)
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "chat_template.json", {"chat_template": config["chat_template"]})
    return tokenizer


def _tokenizer_config(tokenizer: Tokenizer, family: Family) -> dict[str, Any]:
    system = "" if family == "qwen3_vl" else _DEFAULT_SYSTEM
    added = {
        str(index): {
            "content": token.content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token.special,
        }
        for index, token in tokenizer.get_added_tokens_decoder().items()
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(CONTROL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": _MEDIA + system + _TURNS,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _write_processor(folder: Path, family: Family) -> None:
    if family == "qwen3_vl":
        common: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
        common |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        common |= {"processor_class": "Qwen3VLProcessor"}
        image = {
            "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
        video = {
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "video_processor_type": "Qwen3VLVideoProcessor",
        }
        _write_json(folder / "preprocessor_config.json", common | image)
        _write_json(folder / "video_preprocessor_config.json", common | video)
        return
    name = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}[family]
    config = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": name,
    }
    _write_json(folder / "preprocessor_config.json", config)


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    end, text_end = (_token_id(tokenizer, token) for token in ("<|im_end|>", "<|endoftext|>"))
    return {
        "bos_token_id": text_end,
        "pad_token_id": text_end,
        "do_sample": True,
        "eos_token_id": [end, text_end],
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
