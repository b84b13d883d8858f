"""What must hold on every device: bodies that `test_gpu.py` and `test_cuda_fake.py` share.

Errors are measured against a wider dtype and accepted when they are at most twice those of the
plain formula in the model's own dtype: half the kernels' rounding is no fault, a wrong row is.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from litevl.check import TIE
from litevl.config import Config
from litevl.engine.batch import lying_lens
from litevl.engine.engine import Engine, Launched, Runner
from litevl.engine.memory import plan_for
from litevl.engine.sampler import Sampler
from litevl.models import loader
from litevl.models.attention import (
    TEXT_ATTENTION,
    AttentionBackend,
    AttentionBatch,
    KVCache,
    LayerCall,
    SdpaPaged,
)
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import MediaItem, Prompt, SamplingParams, Step
from litevl.sequence import Sequence as Request
from rig import Rig, greedy

# Logits of bfloat16 are 1/32 apart at 4 to 8, and carry the noise of every layer before them.
TIES = {torch.float32: TIE, torch.bfloat16: 0.25}
CPU = torch.device("cpu")


# Attention -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedCase:
    """Sequences of one step: `query_lens` new tokens each, of `context_lens` in all."""

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    window: int = 0
    tail: int = 0  # tokens at the end of a context whose blocks lie among the others'
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)


PREFILL = PagedCase(query_lens=(70, 300, 9), context_lens=(70, 300, 9))
CASES = {
    "prefill": PREFILL,
    "continued": PagedCase(query_lens=(30, 2, 256), context_lens=(290, 700, 257)),
    "mixed": PagedCase(query_lens=(1, 1, 40, 5), context_lens=(513, 1, 296, 5)),
    "decode": PagedCase(query_lens=(1, 1, 1), context_lens=(1025, 256, 3)),
    "one decode": PagedCase(query_lens=(1,), context_lens=(1500,)),
    "window": PagedCase(query_lens=(1, 1, 40), context_lens=(600, 5, 90), window=32),
    "grown": PagedCase(query_lens=(1, 1, 1, 30), context_lens=(700, 256, 300, 400), tail=100),
    "grown window": PagedCase(query_lens=(1, 1), context_lens=(600, 90), window=64, tail=40),
    "grown beyond the window": PagedCase(query_lens=(1,), context_lens=(600,), window=32, tail=99),
    "head_dim 128": PagedCase(
        query_lens=(1, 50), context_lens=(300, 50), heads=14, kv_heads=2, head_dim=128
    ),
}


def check_paged_attention(
    case: PagedCase,
    backend: AttentionBackend,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> None:
    """A backend's attention over shuffled blocks is that of each sequence alone, though all slots
    that it may not see hold NaN."""
    torch.manual_seed(seed)
    queries = [torch.randn(n, case.heads, case.head_dim) for n in case.query_lens]
    pairs = [torch.randn(2, n, case.kv_heads, case.head_dim) for n in case.context_lens]
    queries, pairs = ([each.to(device, dtype) for each in group] for group in (queries, pairs))
    new = torch.cat([p[:, -n:] for p, n in zip(pairs, case.query_lens, strict=True)], dim=1)
    batch = _paged_batch(case, pairs, backend)
    call = LayerCall(
        q=torch.cat(queries), k=new[0], v=new[1], layer=0, scale=case.scale, window=case.window
    )
    out = backend.attend(call, batch)
    rows = list(zip(queries, pairs, strict=True))
    plain = torch.cat([_plain(case, q, pair) for q, pair in rows])
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    exact = torch.cat([_plain(case, q.to(wide), pair.to(wide)) for q, pair in rows])
    assert out.shape == plain.shape and out.dtype == dtype and out.device == plain.device
    check_error(out, plain, exact)


def check_decodes(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> None:
    """200 decodes in a row are right and finite, among them first and last tokens of blocks."""
    size = backend.block_size
    for step in range(200):
        lens = (size - 100 % size + step, 1 + step, 2 * size - 2 + step)[: 1 + step % 3]
        case = PagedCase(query_lens=(1,) * len(lens), context_lens=lens)
        check_paged_attention(case, backend, device, dtype, seed=step)


def check_error(out: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The worst row of `out` is at most twice as far from `exact` as that of `plain`."""
    assert bool(out.isfinite().all())
    error, allowed = (
        float((each.to(exact) - exact).flatten(1).norm(dim=1).max()) for each in (out, plain)
    )
    assert error <= 2 * allowed + 1e-6


def _paged_batch(
    case: PagedCase, pairs: Sequence[Tensor], backend: AttentionBackend
) -> AttentionBatch:
    """The cache that holds all keys and values, in blocks handed out at random, except that those
    of every second sequence lie in a row, up to its tail."""
    size, device = backend.block_size, pairs[0].device
    widths = [-(-n // size) for n in case.context_lens]
    rows = [0 if i % 2 else max(0, w - -(-case.tail // size)) for i, w in enumerate(widths)]
    lying = list(range(sum(rows)))
    mixed = (torch.randperm(sum(widths) - len(lying) + 2) + len(lying)).tolist()
    tables = [
        [(lying.pop(0) if place < in_row else mixed.pop()) for place in range(width)]
        for width, in_row in zip(widths, rows, strict=True)
    ]
    shape = (sum(widths) + 2, size, case.kv_heads, case.head_dim)
    keys, values = (torch.full(shape, torch.nan).to(pairs[0]) for _ in range(2))
    cache = KVCache((keys,), (values,))
    for table, pair in zip(tables, pairs, strict=True):
        slots = torch.tensor([b * size + i for b in table for i in range(size)][: pair.shape[1]])
        cache.write(0, slots.to(device), pair[0], pair[1])
    ends = torch.tensor([0, *case.query_lens]).cumsum(0)
    padded = [table + [0] * (max(widths) - len(table)) for table in tables]
    blocks = np.asarray(padded, dtype=np.int32)
    return AttentionBatch(
        backend=backend,
        cache=cache,
        slots=torch.zeros(int(ends[-1]), dtype=torch.int64, device=device),  # written already
        cu_seqlens=ends.to(device, torch.int32),
        context_lens_on_device=torch.tensor(case.context_lens, dtype=torch.int32, device=device),
        block_table=torch.from_numpy(blocks).to(device),
        query_lens=case.query_lens,
        context_lens=case.context_lens,
        lying_lens=lying_lens(blocks, case.context_lens, backend, keys.dtype),
        first_slots=tuple((blocks[:, 0] * size).tolist()),
    )


def _plain(case: PagedCase, q: Tensor, pair: Tensor) -> Tensor:
    """Attention of one sequence, spelt out, every step rounded to the dtype of `q`."""
    keys, values = pair.repeat_interleave(case.heads // case.kv_heads, dim=2).transpose(1, 2)
    n, total = len(q), pair.shape[1]
    seen = torch.ones(n, total, dtype=torch.bool, device=q.device).tril(total - n)
    if case.window:
        seen = seen.triu(total - n - case.window + 1)
    scores = q.transpose(0, 1) @ keys.transpose(1, 2) * case.scale
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    out: Tensor = weights @ values
    return out.transpose(0, 1)


# Models ----------------------------------------------------------------------------------------


def check_greedy(rig: Rig) -> None:
    """Whatever the batch and the chunks around a request, its tokens are those of `generate`."""
    specs: tuple[Any, ...] = ([20, (1, 4, 6), 40, (1, 8, 8), 5], [9], [2, (1, 6, 6), 3], [70])
    prompts = {str(i): rig.image_prompt(spec, seed=i) for i, spec in enumerate(specs)}
    engine, runner = rig.engine(num_blocks=100, max_tokens=24, encoder_tokens=16)
    outputs: dict[str, list[int]] = {name: [] for name in prompts}
    arriving = list(prompts.items())
    while arriving or engine.num_unfinished:
        if arriving:  # one a step, while others are being read or answered
            name, prompt = arriving.pop(0)
            engine.add(greedy(prompt, name, 12))
        for output in engine.step():
            assert output.token_id is not None
            outputs[output.request_id].append(output.token_id)
    engine.check_idle()
    assert runner.mixed and runner.cut_media
    assert len({token for tokens in outputs.values() for token in tokens}) >= 8
    for name, prompt in prompts.items():
        check_agreement(rig, prompt, outputs[name])


def check_agreement(rig: Rig, prompt: Prompt, output: list[int]) -> None:
    """The first token that differs from the reference's was a near tie in the reference."""
    expected = rig.generate(prompt, len(output))
    if output != expected:
        same = next(
            i for i, pair in enumerate(zip(output, expected, strict=True)) if len({*pair}) > 1
        )
        assert rig.top_two_gap(prompt, expected[:same]) <= TIES[rig.dtype]


def check_vision(folder: Path, attention: str, device: torch.device, dtype: torch.dtype) -> None:
    """The vision tower sees the same with an attention of ours as with transformers' SDPA."""
    rig = Rig(folder)
    items = rig.image_prompt([(1, 4, 6), 3, (1, 8, 8), (1, 16, 12)]).media
    exact = _encode(folder, "sdpa", CPU, torch.float64, items)
    plain = _encode(folder, "sdpa", device, dtype, items)
    out = _encode(folder, attention, device, dtype, items)
    check_error(out, plain, exact)


def _encode(
    folder: Path,
    attention: str,
    device: torch.device,
    dtype: torch.dtype,
    items: Sequence[MediaItem],
) -> Tensor:
    raw = Rig(folder, device=device, dtype=dtype).reference
    model = loader.prepare(raw, device=device, backend=SdpaPaged())
    raw.set_attn_implementation({"text_config": TEXT_ATTENTION, "vision_config": attention})
    with torch.inference_mode():
        return torch.cat(model.encode(items)).cpu()


def check_never_waits(rig: Rig) -> None:
    """No step of an engine waits for the device; on the CPU there is nothing to wait for."""
    engine, runner = rig.engine(num_blocks=100, max_tokens=24, encoder_tokens=16)
    run_every_kind_of_step(rig, engine)  # may wait: it makes handles and loads kernels
    run_every_kind_of_step(rig, around(engine, Unwaiting(runner, rig.device)))
    assert runner.mixed and runner.cut_media


def run_every_kind_of_step(rig: Rig, engine: Engine) -> None:
    """Pictures, chunks, mixed batches and decodes; greedy and sampled rows, with penalties too."""
    engine.add(greedy(rig.image_prompt([20, (1, 4, 6), 40, (1, 8, 8), 5]), "picture", 4))
    while not engine.step():
        pass
    for i, params in enumerate(SAMPLED):
        prompt = rig.image_prompt([5 + i, (1, 4, 4)], seed=i)
        mask = EvenTokens() if i == 1 else None
        engine.add(Request(request_id=str(i), prompt=prompt, params=params, mask=mask))
    while engine.num_unfinished:
        engine.step()
    engine.check_idle()


def around(engine: Engine, runner: Runner) -> Engine:
    """The same scheduler with another runner."""
    return Engine(
        engine.scheduler, runner, max_model_len=400, max_num_seqs=8, max_num_queued_reqs=1000
    )


@dataclass(frozen=True, slots=True)
class Unwaiting:
    """A runner whose `launch` must not wait for the device."""

    runner: Runner
    device: torch.device

    def launch(self, step: Step) -> Launched:
        with no_waiting(self.device):
            return self.runner.launch(step)

    def check_device(self) -> None:
        self.runner.check_device()


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Torch raises where it would wait for a CUDA device."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_memory_plan(model: QwenVL) -> None:
    """The cache that is planned for a model can be had, beside the largest step."""
    config = Config(max_model_len=1000, max_num_seqs=4, gpu_memory_utilization=0.5)
    plan = plan_for(model, config)
    cache = model.new_cache(plan.num_blocks)
    assert plan.max_model_len == 1000
    assert sum(each.nbytes for each in (*cache.keys, *cache.values)) == plan.num_bytes
    assert cache.block_size * plan.num_blocks >= 4 * 1000


# Sampling --------------------------------------------------------------------------------------

SAMPLED = (
    SamplingParams(max_tokens=4, seed=1),
    SamplingParams(max_tokens=4, seed=2, temperature=0.7, top_k=20, top_p=0.8),
    SamplingParams(max_tokens=4, seed=3, top_p=0.5),
    SamplingParams(max_tokens=4, temperature=0.0, repetition_penalty=1.3),
    SamplingParams(max_tokens=4, seed=5, presence_penalty=0.5, frequency_penalty=0.5),
    SamplingParams(max_tokens=4, seed=6, min_p=0.1, logit_bias=((7, 1.5),), logprobs=3),
    SamplingParams(max_tokens=4, seed=7, min_tokens=3, stop_token_ids=frozenset({5}), logprobs=0),
)


class EvenTokens:
    """A grammar that allows even token ids."""

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        bitmask[:] = 0x55555555

    def accept(self, token_id: int) -> None:
        assert token_id % 2 == 0 or token_id == 7  # what a fake card always says


def check_sampling(rig: Rig) -> None:
    """Each row draws the same token alone as in a batch, in whatever order."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(len(SAMPLED), 300).to(rig.device)
    requests = [
        Request(
            request_id=str(i),
            prompt=rig.image_prompt([9], seed=i),
            params=params,
            row=i,
            mask=EvenTokens() if i == 1 else None,
        )
        for i, params in enumerate(SAMPLED)
    ]

    def draw(rows: list[int]) -> list[int]:
        sampler = Sampler(300, len(SAMPLED), rig.device)
        drawn = sampler.sample(logits[rows], [requests[row] for row in rows])
        assert drawn.is_valid.all()
        return [each.token_id for each in drawn.read()]

    for place in range(20):
        rows = list(range(len(SAMPLED)))
        together = draw(rows)
        assert [draw([row])[0] for row in rows] == together
        assert draw(rows[::-1]) == together[::-1]
        assert all(0 <= token < 300 for token in together)
        for request in requests:
            request.output_token_ids.append(place)
