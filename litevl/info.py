"""`litevl info MODEL`: what a model needs and offers, without its weights.

Called by `cli.py`. Knows the checkpoint's small files and this machine's memory.
"""

from collections.abc import Iterator, Set
from typing import Any

import torch

from litevl.config import Config
from litevl.machine import memory
from litevl.models import hub, loader
from litevl.models.chat_template import ChatTemplate
from litevl.models.media_limits import media_policy_of
from litevl.models.media_policy import MediaPolicy
from litevl.models.needs import Needs, needs_of
from litevl.models.processor import read_processor
from litevl.models.prompt_text import PromptText
from litevl.models.qwen_vl import FAMILIES
from litevl.progress import amount
from litevl.sequence import SamplingDefaults

CARDS_GB = (24, 48, 80)
THINKING = "<think>"


def info(config: Config) -> str:
    """The page about one model."""
    source = hub.find(config)
    model_config = loader.read_config(source)
    needs = needs_of(model_config)
    device = loader.choose_device(config)
    dtype = loader.choose_dtype(config, device)
    rows = [("family", f"{FAMILIES[model_config.model_type]} ({model_config.model_type})")]
    rows += _source(source)
    rows += _sizes(needs)
    rows += _fit(needs, device, dtype, config)
    rows += _offers(source, model_config, config, needs.context)
    lines = [f"  {name:<14}{text}".rstrip() for name, text in rows]
    return "\n".join(["", f"  {source.name}", "", *lines, ""])


def _source(source: hub.Source) -> Iterator[tuple[str, str]]:
    if source.hub:
        yield "hub", source.hub
        yield "revision", source.revision
    yield "files", str(source.folder)


def _sizes(needs: Needs) -> Iterator[tuple[str, str]]:
    vision = _count(needs.vision_parameters)
    yield "parameters", f"{_count(needs.parameters)}, of which the vision tower {vision}"
    yield "context", f"{needs.context:,} tokens"
    half, full = (
        amount(needs.weights(torch.bfloat16, "cuda")),
        amount(needs.weights(torch.float32, "cpu")),
    )
    yield "weights", f"{half} in bfloat16, {full} in float32 on the CPU"
    shape = f"{needs.layers} layers, {needs.kv_heads} heads of {needs.head_dim}"
    cache = amount(needs.kv(torch.bfloat16, 1000))
    yield "KV cache", f"{cache} for 1,000 tokens in bfloat16 ({shape})"


def _fit(
    needs: Needs, device: torch.device, dtype: torch.dtype, config: Config
) -> Iterator[tuple[str, str]]:
    """Whether it runs here, and on which cards."""
    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        where = f"{torch.cuda.get_device_name(device)}, {amount(free)} free of {amount(total)}"
        tokens = needs.tokens_beside(free, dtype, config.gpu_memory_utilization)
    else:
        free = memory().free
        where = f"CPU, {amount(free)} free"
        tokens = max(0, free - needs.weights(dtype, "cpu")) // 4 // needs.kv(dtype)
    verdict = _verdict(tokens, needs) if tokens else "too little memory"
    yield "this machine", f"{where}: {verdict} in {name}"
    for size in CARDS_GB:
        tokens = needs.tokens_beside(size * 10**9, torch.bfloat16)
        yield f"{size} GB card", _verdict(tokens, needs) if tokens else "too small"


def _verdict(tokens: int, needs: Needs) -> str:
    if tokens < needs.context:
        return f"fits, with a context of {tokens:,} tokens"
    count = tokens // needs.context
    return f"fits, with {count:,} whole context{'s' if count > 1 else ''} at once"


def _offers(
    source: hub.Source, model_config: Any, config: Config, context: int
) -> Iterator[tuple[str, str]]:
    """Media, tools, thoughts and sampling, as the checkpoint's files tell."""
    processor = read_processor(str(source.folder))
    processor.video_processor.cap_pixels_per_frame = True  # unset it warns
    yield from _media(media_policy_of(processor, config, PromptText(processor), context))
    template = ChatTemplate(processor)
    notation = {"hermes": "JSON in <tool_call>", "xml": "XML in <tool_call>"}[template.tool_format]
    yield "tools", notation + ("" if template.has_tools else ", spelled out by litevl")
    yield "thinking", _thinking(processor.chat_template, template.options)
    settings = loader.read_generation_settings(
        source.folder, model_config, config.generation_config
    )
    yield "sampling", _sampling(settings.defaults)


def _media(policy: MediaPolicy) -> Iterator[tuple[str, str]]:
    side, pixels = policy.factor, policy.factor**2
    least = int(policy.picture.least) // pixels
    most = min(int(policy.picture.most) // pixels, policy.max_item_tokens)
    yield "pictures", f"{side} x {side} pixels a token, {least:,} to {most:,} tokens each"
    frames = min(policy.default_max_frames, policy.max_frames_flag)
    rate = f"{policy.fps:g} frames a second, {policy.min_frames} to {frames} in all"
    yield "clips", f"{rate}, two frames share their tokens"


def _thinking(template: str, options: Set[str]) -> str:
    if THINKING not in template:
        return "no"
    steered = sorted(options & {"enable_thinking", "reasoning_effort"})
    return f"yes, steered by {', '.join(steered)}" if steered else "yes"


def _sampling(chosen: SamplingDefaults) -> str:
    if chosen.temperature == 0:
        return "greedy"
    kept = f"top_p {chosen.top_p:g}, top_k {chosen.top_k}"
    penalty = f"repetition_penalty {chosen.repetition_penalty:g}"
    return f"temperature {chosen.temperature:g}, {kept}, {penalty}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e8 else f"{number / 1e6:.2f} million"
