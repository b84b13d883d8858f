"""How much of the machine's memory the KV cache may take, and the context that follows.

Called by `cli.py` once the weights are loaded. The arithmetic (`plan_kv`) knows no device.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from litevl.config import Config
from litevl.engine.batch import pack
from litevl.engine.sampler import Sampler
from litevl.errors import ConfigError
from litevl.machine import memory
from litevl.models.qwen_vl import ENCODE_TOKENS, QwenVL
from litevl.progress import amount
from litevl.sequence import Chunk, MediaItem, Prompt, SamplingParams, Sequence, Step

DEFAULT_BATCHED_TOKENS = {"cpu": 256, "cuda": 2048}
ENCODER_SHARE = 8  # the encoder cache takes at most one part in eight of the budget
MAX_ENCODER_BYTES = 2**30  # 32 pictures of a megapixel with an 8B model
KERNEL_BYTES = 2**28  # of oneDNN's kernels, made as they are needed: hundreds, of up to 0.5 MiB
CPU_SHARE = 4  # on the CPU the cache takes at most one part in four of the free memory


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPlan:
    """What was decided. Bytes are of keys and values of all layers."""

    num_blocks: int
    max_model_len: int
    num_bytes: int
    encoder_bytes: int = 0  # of features kept for later requests


def plan_for(model: QwenVL, config: Config) -> KVPlan:
    """The plan for a loaded model on its device, within the operator's settings."""
    model_len = int(model.config.text_config.max_position_embeddings)
    budget = kv_budget(model, config, config.max_model_len or model_len)
    encoder_bytes = min(budget // ENCODER_SHARE, MAX_ENCODER_BYTES)
    plan = plan_kv(
        budget=budget - encoder_bytes,
        bytes_per_block=model.kv_bytes_per_block(),
        block_size=model.backend.block_size,
        model_len=model_len,
        asked_len=config.max_model_len,
        asked_blocks=config.num_blocks,
        max_num_seqs=config.max_num_seqs,
    )
    return replace(plan, encoder_bytes=encoder_bytes)


def batched_tokens(model: QwenVL, config: Config) -> int:
    """Tokens computed in one step: as the operator says, or what suits the device."""
    return config.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS[model.device.type]


def plan_kv(
    *,
    budget: int,
    bytes_per_block: int,
    block_size: int,
    model_len: int,
    asked_len: int | None,
    asked_blocks: int | None,
    max_num_seqs: int,
) -> KVPlan:
    """Divide `budget` bytes into blocks; a whole context must fit, so that one can always run.

    Raises ConfigError when what was asked for cannot be had.
    """
    if asked_len is not None and asked_len > model_len:
        raise ConfigError(f"--max-model-len {asked_len}: this model allows at most {model_len}")
    wanted_len = asked_len or model_len
    affordable = asked_blocks or budget // bytes_per_block
    whole = -(-wanted_len // block_size)
    useful = max_num_seqs * whole
    num_blocks = min(affordable, asked_blocks or useful)
    fits = num_blocks * block_size
    if fits < (asked_len or 1):
        raise ConfigError(
            f"a context of {wanted_len} tokens needs {amount(whole * bytes_per_block)} "
            f"of KV cache and {amount(budget)} can be had, enough for {fits} tokens: "
            "lower --max-model-len, free memory, or choose a smaller model"
        )
    return KVPlan(
        num_blocks=num_blocks,
        max_model_len=min(wanted_len, fits),
        num_bytes=num_blocks * bytes_per_block,
    )


def check_weights(num_bytes: int, device: torch.device) -> None:
    """Raise ConfigError where the weights do not fit, before the first of them is read."""
    if device.type == "cpu":
        free, where = memory().free, "this machine"
    else:
        free, where = torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    if num_bytes > free:
        raise ConfigError(
            f"the weights need {amount(num_bytes)} and {where} has {amount(free)} free: choose a "
            "smaller model (`litevl info MODEL` tells what one needs), --dtype bfloat16, or free "
            "memory"
        )


def kv_budget(model: QwenVL, config: Config, max_model_len: int) -> int:
    """Bytes that the KV cache may take. On CUDA a full step is run to see what else is needed."""
    if model.device.type == "cpu":
        return max(0, memory().free - KERNEL_BYTES) // CPU_SHARE
    torch.cuda.reset_peak_memory_stats(model.device)
    run_largest_step(
        model,
        max_tokens=batched_tokens(model, config),
        max_media_tokens=min(ENCODE_TOKENS, max_model_len // 2),
        max_num_seqs=config.max_num_seqs,
    )
    torch.cuda.synchronize(model.device)
    peak = torch.cuda.max_memory_allocated(model.device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(model.device)
    others = total - free - torch.cuda.memory_reserved(model.device)
    return max(0, int(total * config.gpu_memory_utilization) - others - peak)


@torch.inference_mode()
def run_largest_step(
    model: QwenVL, *, max_tokens: int, max_media_tokens: int, max_num_seqs: int
) -> None:
    """The step that needs the most memory: the largest picture, a full chunk, and as many answers
    as there can be, with every penalty, a full sort and log probabilities."""
    model.encode([largest_item(model, max_media_tokens)])
    chunk = _full_chunk(max_tokens, model.backend.block_size)
    cache = model.new_cache(len(chunk.sequence.blocks))
    batch = pack(Step(chunks=(chunk,)), cache, model.backend, model.device)
    none = torch.empty(0, device=model.device)
    hidden = model.forward(
        model.embed(batch.token_ids), batch.positions, batch.attention, batch.media_rows, none
    )
    logits = model.logits(hidden[:max_num_seqs])
    sampler = Sampler(model.vocab_size, max_num_seqs, model.device)
    sampler.sample(logits, [_demanding(row) for row in range(len(logits))])


def largest_item(model: QwenVL, num_tokens: int) -> MediaItem:
    """A grey picture of at least `num_tokens` features."""
    vision = model.config.vision_config
    merge = vision.spatial_merge_size
    side = merge * (int(num_tokens**0.5) + 1)
    channels: int = getattr(vision, "in_channels", 0) or getattr(vision, "in_chans", 3)
    width = channels * vision.temporal_patch_size * vision.patch_size**2
    return MediaItem(
        kind="image",
        digest=b"",
        token_indices=np.arange((side // merge) ** 2),
        pixels=np.zeros((side * side, width), dtype=np.uint8),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        grid=(1, side, side),
    )


def _demanding(row: int) -> Sequence:
    """Of all answers the one that takes most to sample."""
    params = SamplingParams(max_tokens=1, top_p=0.9, presence_penalty=1.0, logprobs=20)
    return Sequence(request_id=f"largest {row}", prompt=_blank(1), params=params, row=row)


def _blank(num_tokens: int) -> Prompt:
    return Prompt(
        token_ids=np.zeros(num_tokens, dtype=np.int64),
        positions=np.broadcast_to(np.arange(num_tokens), (3, num_tokens)),
        position_delta=0,
    )


def _full_chunk(num_tokens: int, block_size: int) -> Chunk:
    params = SamplingParams(max_tokens=1)
    sequence = Sequence(request_id="largest", prompt=_blank(num_tokens), params=params)
    sequence.blocks = list(range(-(-num_tokens // block_size)))
    return Chunk(sequence=sequence, start=0, length=num_tokens)
