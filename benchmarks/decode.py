"""Decode against batch and context, beside HF `generate` and the machine's limits of the same run.

`python -m benchmarks.decode`: tokens/s and milliseconds a step at batch 1 to 32 and context 256 to
8192, and which share of a step at batch 1 the bare products with the same weights take, in pairs
of a step and the products. Contexts are planted, not computed. `first` is a batch that has just
begun to answer, whose blocks still lie in rows; `later` one whose last blocks lie between one
another's. A point's limit is what the machine needs at least: its weights and keys read at the rate
of a matrix-vector product, or its arithmetic at GEMM's rate, whichever takes longer.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from benchmarks import limits
from benchmarks.limits import Limits
from benchmarks.program import add_checkpoint, finish, parser, table, tell, undisturbed
from benchmarks.reference import folder_or_reference, load, load_plain
from benchmarks.workload import FIRST_WORD, LAST_WORD, decoding
from litevl.models.qwen_vl import QwenVL

BATCHES = (1, 2, 4, 8, 16, 32)
CONTEXTS = (256, 1024, 2048, 4096, 8192)
PEER_CONTEXT = 64
LONG_BATCHES = (1, 8)  # batches whose contexts grow
BUDGET_SHARE = 0.85
STEPS = 11  # a block has room for 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Medians of one batch of one context."""

    batch: int
    context: int
    layout: str
    step_ms: float
    tokens_s: float
    limit_ms: float
    cores_of_others: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one decode step must move and compute."""

    weight_bytes: float  # of the language model's and the head's matrices
    kv_bytes: float  # of one token of context

    @classmethod
    def of(cls, model: QwenVL) -> "Work":
        text = model.config.text_config
        heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
        layer = text.hidden_size * (heads * text.head_dim + 3 * text.intermediate_size)
        matrices = text.num_hidden_layers * layer + text.hidden_size * text.vocab_size
        per_block = model.kv_bytes_per_block() / model.backend.block_size
        return cls(weight_bytes=4.0 * matrices, kv_bytes=per_block)

    def num_bytes(self, batch: int, context: int) -> float:
        return self.weight_bytes + batch * context * self.kv_bytes

    def limit_ms(self, rates: Limits, batch: int, context: int) -> float:
        reading = self.num_bytes(batch, context) / rates.matvec_gb_s / 1e6
        computing = 2 * self.weight_bytes / 4 * batch / rates.gemm_gflop_s / 1e6
        return max(reading, computing)


def measure(model: QwenVL, work: Work, rates: Limits, shape: tuple[int, int, str]) -> Point:
    batch, context, layout = shape
    seconds, others = undisturbed(lambda: _step_seconds(model, shape))
    point = Point(
        batch=batch,
        context=context,
        layout=layout,
        step_ms=seconds * 1e3,
        tokens_s=batch / seconds,
        limit_ms=work.limit_ms(rates, batch, context),
        cores_of_others=others,
    )
    tell(f"batch {batch:2} context {context:4} {layout}: {point.step_ms:.1f} ms")
    return point


def _step_seconds(model: QwenVL, shape: tuple[int, int, str]) -> float:
    batch, context, layout = shape
    bench = decoding(model, rows=batch, context=context, is_scattered=layout == "later")
    bench.step()
    return median(bench.step()[0] for _ in range(STEPS))


def shapes(
    batches: list[int] | None, contexts: list[int] | None, *, is_quick: bool
) -> list[tuple[int, int, str]]:
    """What was asked for; else every batch at the shortest context and some at every context."""
    if batches or contexts:
        pairs = [(batch, context) for batch in batches or [1] for context in contexts or [256]]
    elif is_quick:
        pairs = [(batch, context) for context in CONTEXTS[:2] for batch in LONG_BATCHES]
    else:
        pairs = [(batch, CONTEXTS[0]) for batch in BATCHES]
        pairs += [(batch, context) for batch in LONG_BATCHES for context in CONTEXTS[1:]]
    return [
        (batch, context, layout)
        for batch, context in pairs
        for layout in (("first", "later") if batch > 1 else ("first",))
    ]


@torch.inference_mode()
def products_share(model: QwenVL) -> float:
    """How much of a step at batch 1 its matrix-vector products take by themselves."""
    bench = decoding(model, rows=1, context=CONTEXTS[0])
    matrices = bench.model.matrices()
    rows = [torch.rand(1, int(matrix.in_features)) for matrix in matrices]  # type: ignore[arg-type]
    shares = []
    for _ in range(STEPS + 1):
        began = perf_counter()
        for matrix, row in zip(matrices, rows, strict=True):
            matrix(row)
        alone = perf_counter() - began
        shares.append(alone / bench.step()[0])
    return median(shares[1:])


class _Clock(BaseStreamer):
    """Notes when each token of `generate` came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        pass


def generate_ms(model: Any, batch: int, context: int) -> float:
    """Milliseconds a step of greedy `generate`, its prompt's step left out."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(FIRST_WORD, LAST_WORD, (batch, context)))
    clock = _Clock()
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=torch.zeros_like(ids, dtype=torch.int32),
            max_new_tokens=STEPS + 1,
            min_new_tokens=STEPS + 1,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            streamer=clock,
        )
    return float(np.median(np.diff(clock.times)[1:])) * 1e3


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    add_checkpoint(made)
    made.add_argument("--batches", type=int, nargs="+", help="only these (and context 256)")
    made.add_argument("--contexts", type=int, nargs="+", help="only these (and batch 1)")
    made.add_argument("--peers", type=int, nargs="*", help="batches that HF generate runs at")
    args = made.parse_args(argv)
    folder = folder_or_reference(args.checkpoint)
    torch.set_num_threads(args.threads)
    rates, _ = undisturbed(partial(limits.measure, repeats=3 if args.quick else limits.REPEATS))
    model = load(folder, args.threads)
    work = Work.of(model)
    grid = shapes(args.batches, args.contexts, is_quick=args.quick)
    points = [measure(model, work, rates, shape) for shape in grid]
    share, _ = undisturbed(partial(products_share, model))
    figures: dict[str, Any] = {
        "share_of_own_products": share,
        "budget_share": BUDGET_SHARE,
        "points": [asdict(point) for point in points],
        "generate_ms": _peers(folder, [1] if args.peers is None else args.peers),
        "limits": asdict(rates),
    }
    if points[0].batch == 1:
        gb_s = work.num_bytes(1, points[0].context) / points[0].step_ms / 1e6
        figures["share_of_plain_matvec"] = gb_s / rates.plain_matvec_gb_s
        figures["share_of_packed_matvec"] = gb_s / rates.packed_matvec_gb_s
    head = ("batch", "context", "layout", "ms a step", "tokens/s", "limit ms", "others")
    table(head, [tuple(asdict(point).values()) for point in points])
    shares = [(name, value) for name, value in figures.items() if "share" in name]
    table(("batch 1", "value"), [*shares, ("generate_ms", figures["generate_ms"])])
    finish("decode", figures, args.threads)


def _peers(folder: Path, batches: list[int]) -> dict[int, float]:
    """Milliseconds a step of `generate` by batch."""
    if not batches:
        return {}
    plain = load_plain(folder)
    return {
        batch: undisturbed(partial(generate_ms, plain, batch, PEER_CONTEXT))[0] for batch in batches
    }


if __name__ == "__main__":
    main()
