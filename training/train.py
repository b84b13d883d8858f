"""Teaches words to a model that sees: ``python -m training.train RUN --samples 60000``.

RUN holds ``base`` (the tokenizer), ``eyes.pt`` (from ``look.py``), ``last.pt`` (everything needed
for ``--resume``) and ``log.jsonl``. Samples come from ``data.py``, the loss from ``model.py``;
``export.py`` turns ``last.pt`` into the demo.
"""

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3VLForConditionalGeneration,
)

from training.data import Pool, Sample, collate, make_sample
from training.eyes import Sight
from training.model import Batch, Speaker, eyes_of, new_model

VALIDATION_SEED = 999


MUON_RATE = 0.02
ADAM_RATE = 2e-3


class Run:
    """The state of a training run and its files."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options, self.done = folder, options, 0
        self.tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            folder / "base"
        )
        torch.manual_seed(options.seed)
        model = new_model(self.tokenizer)
        self.speaker = Speaker(model, compiled=True)
        self.sight = Sight(model.model.visual)
        self.language = model.model.language_model
        matrices = [weight for weight in self.language.layers.parameters() if weight.ndim == 2]
        taken = {id(weight) for weight in matrices}
        rest = [weight for weight in self.language.parameters() if id(weight) not in taken]
        self.average = {k: v.clone() for k, v in self.language.state_dict().items()}
        self.rates = (MUON_RATE * options.rate, ADAM_RATE * options.rate)
        self.optimizers = [
            torch.optim.Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.01, ns_steps=4),
            torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]

    def open_eyes(self) -> None:
        """The eyes as ``look.py`` left them last."""
        saved = torch.load(self.folder / "eyes.pt", weights_only=False)
        self.sight.visual.load_state_dict(eyes_of(saved["average"]))

    @torch.no_grad()
    def inherit(self, folder: Path) -> None:
        """Begins with the language of an earlier checkpoint; tokens find each other by name."""
        earlier = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        language = earlier.model.language_model
        known = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
        names = self.tokenizer.get_vocab()
        shared = [(names[name], known[name]) for name in names if name in known]
        rows, old_rows = (list(numbers) for numbers in zip(*shared, strict=True))
        self.language.embed_tokens.weight[rows] = language.embed_tokens.weight[old_rows]
        self.language.layers.load_state_dict(language.layers.state_dict())
        self.language.norm.load_state_dict(language.norm.state_dict())

    def save(self) -> None:
        state = {
            "language": self.language.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "done": self.done,
        }
        torch.save(state, self.folder / "next.pt")
        os.replace(self.folder / "next.pt", self.folder / "last.pt")

    def resume(self) -> None:
        state = torch.load(self.folder / "last.pt", weights_only=False)
        self.language.load_state_dict(state["language"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average, self.done = state["average"], state["done"]

    def share(self) -> float:
        """The share of the full learning rate: constant, then falling to nought."""
        warm = min(1.0, (self.done + self.options.batch) / 800)
        left = 1 - self.done / self.options.samples
        return float(max(0.01, min(warm, left / (1 - self.options.constant))))

    def step(self, batch: Batch) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss: torch.Tensor = self.speaker(batch)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * self.share()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.language.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.done += len(batch.ids)
        self.follow()
        return float(loss.detach())

    @torch.no_grad()
    def follow(self) -> None:
        """The running average of the weights, which is what gets exported."""
        steps = self.done / self.options.batch
        keep = min(0.99, (1 + steps) / (20 + steps))
        state = self.language.state_dict()
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
        if ask.ability == "count":
            digits = [c for c in ask.answer if c.isdigit()]
            number = int(digits[0]) if digits else 0
            name = f"count{'0' if not number else '1-4' if number < 5 else '5-9'}/{ask.lang}"
        names.append(name)
    return names


@torch.no_grad()
def validate(run: Run, samples: list[Sample]) -> dict[str, float]:
    """Exact answers with the averaged weights; teacher forcing tells what greedy decoding says,
    since a greedy answer is right exactly when every token of it is the best one."""
    live = {k: v.clone() for k, v in run.language.state_dict().items()}
    run.language.load_state_dict(run.average)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for start in range(0, len(samples), 8):
        rows = samples[start : start + 8]
        best = run.speaker.best_tokens(collate(rows, run.sight))
        for row, sample in enumerate(rows):
            for name, (low, high) in zip(tags(sample), sample.spans, strict=True):
                asked[name] += 1
                right[name] += best[row, low - 1 : high - 1].tolist() == sample.ids[low:high]
    run.language.load_state_dict(live)
    return {name: round(right[name] / asked[name], 3) for name in sorted(asked)}


def train(run: Run, options: argparse.Namespace) -> None:
    """Pools in order, a log line a minute, validation and a checkpoint every five."""
    pool = Pool(run.tokenizer, run.sight, options.seed, run.done, options.samples, options.batch)
    loader = DataLoader(pool, batch_size=None, num_workers=options.workers, prefetch_factor=4)
    held = [
        make_sample(run.tokenizer, VALIDATION_SEED, 1_000_000 + k, True)
        for k in range(options.held)
    ]
    began = noted = saved = time.time()
    first, losses = run.done, []
    for batches in loader:
        losses += [run.step(batch) for batch in batches]
        now = time.time()
        if now - noted > 60:
            speed = round((run.done - first) / (now - began), 2)
            mean = round(sum(losses) / len(losses), 4)
            run.log({"samples": run.done, "per_second": speed, "loss": mean})
            losses, noted = [], now
        if now - saved > options.every:
            run.save()
            run.log({"samples": run.done, "exact": validate(run, held)})
            saved = now
    run.save()
    run.log({"samples": run.done, "exact": validate(run, held)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.0, help="of the full learning rate")
    parser.add_argument("--constant", type=float, default=0.6, help="share before the rate falls")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--held", type=int, default=200, help="validation samples")
    parser.add_argument("--every", type=float, default=300, help="seconds between checkpoints")
    parser.add_argument("--words", type=Path, help="a checkpoint whose language to begin with")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run(options.run, options)
    run.open_eyes()
    if options.words:
        run.inherit(options.words)
    if options.resume and (options.run / "last.pt").exists():
        run.resume()
    train(run, options)


if __name__ == "__main__":
    main()
