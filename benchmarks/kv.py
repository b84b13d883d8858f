"""What the paged cache wastes, and what running out of it costs.

`python -m benchmarks.kv`: one random load of requests through an engine with room for all of them,
and again through one with room for few, where sequences are preempted and recomputed. Waste is what
a running sequence's blocks hold beyond its known tokens: budget, less than one block a sequence.
Less room also means smaller batches: `running` tells how many sequences ran at once on average.
"""

from dataclasses import dataclass, field, replace
from statistics import mean
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.program import add_checkpoint, finish, parser, table
from benchmarks.reference import folder_or_reference, load
from benchmarks.workload import Workbench, words
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import Prompt, SamplingParams, Sequence

MAX_NUM_SEQS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests: lengths are drawn evenly from 1/8 of these to all of them."""

    requests: int
    prompt: int
    answer: int

    def draw(self) -> list[tuple[Prompt, int]]:
        rng = np.random.default_rng(0)
        prompts = rng.integers(self.prompt // 8, self.prompt, self.requests, endpoint=True)
        answers = rng.integers(self.answer // 8, self.answer, self.requests, endpoint=True)
        return [
            (words(rng, int(length)), int(answer))
            for length, answer in zip(prompts, answers, strict=True)
        ]

    @property
    def tight_tokens(self) -> int:
        """Room in the cache at which sequences that began together cannot all end together."""
        return (self.prompt + self.answer) * 3 // 2


@dataclass(slots=True, kw_only=True)
class Run:
    """What one pass of the load did."""

    outputs: dict[str, list[int]] = field(default_factory=dict)
    unused: list[int] = field(default_factory=list)  # tokens, per sequence and step
    held: list[int] = field(default_factory=list)
    steps: int = 0
    computed: int = 0
    preemptions: int = 0
    seconds: float = 0.0

    @property
    def tokens_s(self) -> float:
        return sum(map(len, self.outputs.values())) / self.seconds

    @property
    def running(self) -> float:
        return len(self.held) / self.steps


def run(model: QwenVL, load_: Load, num_tokens: int) -> Run:
    """Serve the load with room for `num_tokens` in the cache."""
    size = model.backend.block_size
    bench = Workbench(model, num_blocks=-(-num_tokens // size), max_num_seqs=MAX_NUM_SEQS)
    for i, (prompt, answer) in enumerate(load_.draw()):
        params = SamplingParams(max_tokens=answer, temperature=0.0)
        bench.engine.add(Sequence(request_id=str(i), prompt=prompt, params=params))
    result = Run()
    began = perf_counter()
    while bench.engine.num_unfinished:
        for output in bench.engine.step():
            assert output.token_id is not None
            result.outputs.setdefault(output.request_id, []).append(output.token_id)
        for sequence in bench.scheduler.running:
            result.held.append(len(sequence.blocks) * size)
            result.unused.append(len(sequence.blocks) * size - len(sequence))
    result.seconds = perf_counter() - began
    result.steps = bench.engine.num_steps
    result.computed = bench.model.num_tokens
    result.preemptions = bench.scheduler.num_preemptions
    bench.engine.check_idle()
    return result


def waste(model: QwenVL, result: Run) -> dict[str, Any]:
    """Bytes that running sequences hold and do not use."""
    block = model.kv_bytes_per_block()
    token = block / model.backend.block_size
    # A step ends with one token known that has no place yet: then a full last block counts -1.
    unused = [max(tokens, 0) * token for tokens in result.unused]
    return {
        "block_bytes": block,
        "mean_bytes": mean(unused),
        "worst_bytes": max(unused),
        "share_of_held": sum(unused) / (sum(result.held) * token),
    }


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    add_checkpoint(made)
    args = made.parse_args(argv)
    model = load(folder_or_reference(args.checkpoint), args.threads)
    load_ = Load(requests=8, prompt=48, answer=32)
    if not args.quick:
        load_ = Load(requests=16, prompt=128, answer=64)
    run(model, replace(load_, requests=1), load_.tight_tokens)  # warms up
    roomy = run(model, load_, load_.requests * (load_.prompt + load_.answer))
    tight = run(model, load_, load_.tight_tokens)
    wasted = waste(model, roomy)
    figures = {
        "waste": wasted,
        "roomy_tokens_s": roomy.tokens_s,
        "tight_tokens_s": tight.tokens_s,
        "roomy_running": roomy.running,
        "tight_running": tight.running,
        "tight_tokens": load_.tight_tokens,
        "preemptions": tight.preemptions,
        "computed": roomy.computed,
        "recomputed": tight.computed - roomy.computed,
        "outputs_equal": roomy.outputs == tight.outputs,
    }
    table(("figure", "value"), [*wasted.items(), *list(figures.items())[1:]])
    finish("kv", figures, args.threads)


if __name__ == "__main__":
    main()
