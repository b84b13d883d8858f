"""What the engine costs beside the model: whole steps against the bare forward on the same batch.

`python -m benchmarks.overhead`. Two figures. A step is timed against the same module's forward on
the very tensors of that step, in interleaved pairs (step, bare, bare, step): budget 3 %. And what a
step spends outside the model's calls (schedule, pack, stage, sample, collect, deliver) is clocked
within it: budget 0.3 ms and 10 microseconds a row. `sampled` is top_k 20 and top_p 0.8, as in
Qwen's own settings; `uncut` a temperature alone.
"""

from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.program import add_checkpoint, finish, parser, table, undisturbed
from benchmarks.reference import folder_or_reference, load
from benchmarks.workload import GREEDY, SAMPLED, UNCUT, Workbench, decoding
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import SamplingParams

CONTEXT = 256
PAIRS = 7  # of two: a block has room for 16 steps
BUDGET_RATIO = 1.03
BUDGET_US, BUDGET_US_A_ROW = 300.0, 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians over steps of one shape."""

    rows: int
    sampling: str
    step_ms: float
    bare_ms: float
    ratio: float  # of a step to its neighbour, the bare forward
    outside_us: float
    budget_us: float


def measure(model: QwenVL, rows: int, sampling: str, params: SamplingParams) -> Cost:
    bench = decoding(model, rows=rows, context=CONTEXT, params=params)
    bench.step()  # takes the sequences in
    bench.model.repeat()
    steps, bares, outside = [], [], []
    for _ in range(PAIRS):
        first, inside = bench.step()
        bares += [_bare(bench), _bare(bench)]
        second, later = bench.step()
        steps += [first, second]
        outside += [first - inside, second - later]
    return Cost(
        rows=rows,
        sampling=sampling,
        step_ms=median(steps) * 1e3,
        bare_ms=median(bares) * 1e3,
        ratio=median(step / bare for step, bare in zip(steps, bares, strict=True)),
        outside_us=median(outside) * 1e6,
        budget_us=BUDGET_US + BUDGET_US_A_ROW * rows,
    )


def _bare(bench: Workbench) -> float:
    began = perf_counter()
    bench.model.repeat()
    return perf_counter() - began


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    add_checkpoint(made)
    args = made.parse_args(argv)
    model = load(folder_or_reference(args.checkpoint), args.threads)
    kinds = {"greedy": GREEDY, "sampled": SAMPLED, "uncut": UNCUT}
    costs = [
        undisturbed(partial(measure, model, rows, sampling, kinds[sampling]))[0]
        for sampling in kinds
        for rows in ((1, 8) if args.quick else (1, 8, 32))
    ]
    fields = ("rows", "sampling", "step_ms", "bare_ms", "ratio", "outside_us", "budget_us")
    cells: list[list[Any]] = [[getattr(cost, name) for name in fields] for cost in costs]
    table(fields, cells)
    points = [dict(zip(fields, each, strict=True)) for each in cells]
    worst = max(cost.ratio for cost in costs)
    figures = {"budget_ratio": BUDGET_RATIO, "worst_ratio": worst, "points": points}
    finish("overhead", figures, torch.get_num_threads())


if __name__ == "__main__":
    main()
