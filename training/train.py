"""Trains the demo model: ``python -m training.train RUN --samples 60000``.

RUN holds ``base`` (the tokenizer), ``last.pt`` (everything needed for ``--resume``) and
``log.jsonl``. Reads samples from ``data.py``, losses from ``model.py``; ``export.py`` turns
``last.pt`` into the demo.
"""

import argparse
import json
import math
import os
import time
from collections import Counter, defaultdict
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training.data import Pool, Sample, collate, make_sample
from training.model import Batch, Coach, new_model
from training.scenes import Scene

WEIGHTS = {
    "answer": 1.0,
    "cell_kind": 0.5,
    "cell_colour": 0.5,
    "cell_mass": 2.0,
    "cell_sum": 0.5,
    "count": 1.0,
    "colour": 0.3,
    "motion": 0.3,
}
VALIDATION_SEED = 999


def rate(options: argparse.Namespace, done: int) -> float:
    """Cosine with a short warm-up."""
    warm = min(1.0, (done + options.batch) / 1600)
    share = min(1.0, (done - options.since) / (options.samples - options.since))
    return float(options.rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2))


def normal(batch: Batch) -> Batch:
    """Bytes to floats as the processor does: mean and deviation 0.5."""
    batch.pixels = (batch.pixels.float() - 127.5) / 127.5
    return batch


class Run:
    """The state of a training run and its files."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options, self.done = folder, options, 0
        self.tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            folder / "base"
        )
        torch.manual_seed(options.seed)
        self.coach = Coach(new_model(self.tokenizer))
        self.average = {k: v.clone() for k, v in self.coach.model.state_dict().items()}
        decay = [p for p in self.coach.parameters() if p.ndim > 1]
        plain = [p for p in self.coach.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98), fused=True)

    def save(self) -> None:
        state = {
            "coach": self.coach.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "done": self.done,
        }
        torch.save(state, self.folder / "new.pt")
        os.replace(self.folder / "new.pt", self.folder / "last.pt")

    def resume(self) -> None:
        state = torch.load(self.folder / "last.pt", weights_only=False)
        self.coach.load_state_dict(state["coach"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.done = state["average"], state["done"]
        torch.set_rng_state(state["rng"])

    def step(self, batch: Batch) -> dict[str, float]:
        losses = self.coach(normal(batch))
        loss = sum(weight * losses[name] for name, weight in WEIGHTS.items() if name in losses)
        assert isinstance(loss, torch.Tensor)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.coach.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.options, self.done)
        self.optimizer.step()
        self.done += len(batch.ids)
        self.follow()
        return {name: float(value.detach()) for name, value in losses.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """The running average of the weights, which is what gets exported."""
        steps = self.done / self.options.batch
        keep = min(0.99, (1 + steps) / (20 + steps))
        state = self.coach.model.state_dict()
        torch._foreach_lerp_(
            list(self.average.values()), [state[name] for name in self.average], 1 - keep
        )

    def log(self, record: dict[str, object]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


def tags(sample: Sample) -> list[str]:
    """The names under which each answer of a validation sample is counted."""
    names = []
    for ask in sample.asks:
        name = f"{ask.ability}/{ask.lang}"
        if ask.ability == "count" and isinstance(sample.subject, Scene):
            digits = [c for c in ask.answer if c.isdigit()]
            number = int(digits[0]) if digits else 0
            name = f"count{'0' if not number else '1-4' if number < 5 else '5-9'}/{ask.lang}"
        names.append(name)
    return names


@torch.no_grad()
def validate(run: Run, samples: list[Sample]) -> dict[str, float]:
    """Exact answers with the averaged weights; teacher forcing tells what greedy decoding says,
    since a greedy answer is right exactly when every token of it is the best one."""
    live = {k: v.clone() for k, v in run.coach.model.state_dict().items()}
    run.coach.model.load_state_dict(run.average)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for start in range(0, len(samples), 8):
        rows = samples[start : start + 8]
        best = run.coach.best_tokens(normal(collate(rows)))
        for row, sample in enumerate(rows):
            for name, (low, high) in zip(tags(sample), sample.spans, strict=True):
                asked[name] += 1
                right[name] += best[row, low - 1 : high - 1].tolist() == sample.ids[low:high]
    run.coach.model.load_state_dict(live)
    return {name: round(right[name] / asked[name], 3) for name in sorted(asked)}


def train(run: Run, options: argparse.Namespace) -> None:
    """Pools in order, a log line a minute, validation and a checkpoint every five."""
    pool = Pool(run.tokenizer, options.seed, run.done, options.samples, options.batch)
    loader = DataLoader(pool, batch_size=None, num_workers=options.workers, prefetch_factor=4)
    held = [
        make_sample(run.tokenizer, VALIDATION_SEED, 1_000_000 + k, True)
        for k in range(options.held)
    ]
    began, noted, saved, first = time.time(), time.time(), time.time(), run.done
    sums: dict[str, float] = defaultdict(float)
    seen: Counter[str] = Counter()
    for batches in loader:
        for batch in batches:
            for name, value in run.step(batch).items():
                sums[name] += value
                seen[name] += 1
        if time.time() - noted > 30:
            means = {name: round(sums[name] / seen[name], 4) for name in sums}
            speed = round((run.done - first) / (time.time() - began), 2)
            run.log({"samples": run.done, "per_second": speed, **means})
            sums.clear()
            seen.clear()
            noted = time.time()
        if time.time() - saved > options.every:
            run.save()
            run.log({"samples": run.done, "exact": validate(run, held)})
            saved = time.time()
    run.save()
    run.log({"samples": run.done, "exact": validate(run, held)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=9e-4)
    parser.add_argument("--since", type=int, default=0, help="sample where the cosine begins")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--held", type=int, default=200, help="validation samples")
    parser.add_argument("--every", type=float, default=300, help="seconds between checkpoints")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run(options.run, options)
    if options.resume and (options.run / "last.pt").exists():
        run.resume()
    train(run, options)


if __name__ == "__main__":
    main()
