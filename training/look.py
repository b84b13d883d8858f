"""Trains the eyes alone, without words: ``python -m training.look RUN --eyes litevl/demo``.

RUN holds ``base`` (the tokenizer), ``eyes.pt`` (everything needed for ``--resume``) and
``eyes.jsonl``. Pictures come from ``scenes.py`` and ``signs.py``, losses from ``eyes.py``;
``train.py`` then teaches the words to a model with these eyes.
"""

import argparse
import json
import os
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from training.contents import draw_content, draw_size, odd_picture, picture_of
from training.eyes import WEIGHTS, Sight, Teacher, Views, normal, views
from training.model import new_model
from training.pixels import Bytes, clip_grid, patchify, picture_grid, shrink, to_tensor
from training.scenes import draw_scene, make_clip, roughen
from training.targets import Painted, paint

Rng = np.random.Generator
HELD_SEED = 999
EASY = 8_000  # so many pictures show new eyes at most four of a kind


def picture_view(rng: Rng, grid: tuple[int, int], hard: bool) -> tuple[Bytes, Painted]:
    """A picture drawn near its final size and brought to it."""
    scale = 1.0 if rng.random() < 0.5 else float(rng.uniform(0.6, 1.8))
    width, height = (round(side * 16 * scale * rng.uniform(0.96, 1.04)) for side in grid[::-1])
    if rng.random() < 0.03:
        marks, picture = [], odd_picture(rng, width, height)
    else:
        content = draw_content(rng, width, height, hard)
        marks, picture = content.marks(), roughen(rng, picture_of(content))
    frame = shrink(to_tensor(picture)[None], grid[0] * 16, grid[1] * 16)
    pixels = patchify(torch.cat([frame, frame]))
    one_frame = pixels.reshape(-1, 3, 2, 256)[:, :, 0].reshape(-1, 768)
    return one_frame, paint(marks, *grid)


def clip_view(rng: Rng, grid: tuple[int, int]) -> tuple[Bytes, Painted]:
    """Two neighbouring frames of a clip, half a second apart or a little less."""
    width, height = (round(side * 16 * rng.uniform(0.7, 1.3)) for side in grid[::-1])
    clip = make_clip(rng, width, height, int(rng.integers(0, 3)), int(rng.integers(1, 3)))
    gap = min(0.5 * clip.fps, clip.frames / 4) / (clip.frames - 1)
    parts = len(clip.moves)
    first = (float(rng.integers(parts)) + rng.random() * (1 - gap * parts)) / parts
    frames = [to_tensor(draw_scene(clip.at(share), 2)) for share in (first, first + gap)]
    pair = shrink(torch.stack(frames), grid[0] * 16, grid[1] * 16)
    return patchify(pair), paint(clip.marks(first, first + gap), *grid)


class Gallery(Dataset[Views]):
    """Item ``k`` is a batch of one grid; the same seed and item give the same batch."""

    def __init__(self, seed: int, first: int, count: int, batch: int, easy: int = 0) -> None:
        self.seed, self.first, self.count, self.batch = seed, first, count, batch
        self.easy = easy

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> Views:
        torch.set_num_threads(1)
        if item >= self.count:
            raise IndexError(item)
        rng = np.random.default_rng([self.seed, self.first + item])
        hard = (self.first + item) * self.batch >= self.easy
        clips = bool(rng.random() < 0.15)
        if clips:
            grid = clip_grid(int(rng.integers(2, 5)) * 2, *draw_size(rng, 90, 300, 1.8))
            drawn = [clip_view(rng, grid) for _ in range(self.batch)]
        else:
            grid = picture_grid(*draw_size(rng, 64, 448))
            drawn = [picture_view(rng, grid, hard) for _ in range(self.batch)]
        return views([pixels for pixels, _ in drawn], grid, clips, [labels for _, labels in drawn])


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Run:
    """The state of the eyes' training and its files."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options, self.done = folder, options, 0
        torch.manual_seed(options.seed)
        self.model = new_model(PreTrainedTokenizerFast.from_pretrained(folder / "base"))
        visual = self.model.model.visual
        config = visual.config
        self.sight, self.visual = Sight(visual, compiled=True), visual
        self.teacher = Teacher(config.hidden_size, config.out_hidden_size)
        self.filters = visual.patch_embed.proj.weight
        self.flat = nn.Parameter(self.filters.detach().flatten(1))  # the same memory, as a matrix
        matrices = [weight for weight in visual.blocks.parameters() if weight.ndim == 2]
        taken = {id(weight) for weight in [self.filters, *matrices]}
        matrices.append(self.flat)
        rest = [
            weight
            for weight in [*visual.parameters(), *self.teacher.parameters()]
            if id(weight) not in taken
        ]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01, ns_steps=4),
            torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        ]
        self.rates = (0.02 * options.rate, 1e-3 * options.rate)
        self.whole = nn.ModuleDict({"visual": visual, "teacher": self.teacher})
        self.average = copied(self.whole)

    @torch.no_grad()
    def inherit(self, folder: Path) -> None:
        """Begins with the eyes of an earlier checkpoint. Blocks that it has not got are put in
        before the deepstack level and do nothing at first."""
        earlier = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        old = earlier.model.visual
        spare = len(self.visual.blocks) - len(old.blocks)
        level = int(old.config.deepstack_visual_indexes[0]) + 1
        kept = [*self.visual.blocks[:level], *self.visual.blocks[level + spare :]]
        for block, known in zip(kept, old.blocks, strict=True):
            block.load_state_dict(known.state_dict())
        for block in self.visual.blocks[level : level + spare]:
            for last in (block.attn.proj, block.mlp.linear_fc2):
                nn.init.zeros_(last.weight)
        for name in ("patch_embed", "pos_embed", "merger", "deepstack_merger_list"):
            getattr(self.visual, name).load_state_dict(getattr(old, name).state_dict())
        self.average = copied(self.whole)

    def save(self) -> None:
        state = {
            "whole": self.whole.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "done": self.done,
        }
        torch.save(state, self.folder / "new.pt")
        os.replace(self.folder / "new.pt", self.folder / "eyes.pt")

    def resume(self) -> None:
        state = torch.load(self.folder / "eyes.pt", weights_only=False)
        self.whole.load_state_dict(state["whole"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.average, self.done = state["average"], state["done"]

    def share(self) -> float:
        """The share of the full learning rate: constant, then falling to nought."""
        warm = min(1.0, (self.done + self.options.batch) / 3000)
        left = 1 - self.done / self.options.pictures
        return float(max(0.01, min(warm, left / (1 - self.options.constant))))

    def step(self, batch: Views) -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.teacher(self.sight(normal(batch.pixels), batch.grid), batch)
        loss = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        self.filters.grad = None
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * self.share()
        loss.backward()
        nn.utils.clip_grad_norm_([*self.visual.parameters(), *self.teacher.parameters()], 2.0)
        assert self.filters.grad is not None
        self.flat.grad = self.filters.grad.flatten(1)
        for optimizer in self.optimizers:
            optimizer.step()
        self.done += len(batch.pixels)
        self.follow()
        return {name: float(value.detach()) for name, value in losses.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """The running average of the weights, which is what the words are taught with."""
        steps = self.done / self.options.batch
        keep = min(0.998, (1 + steps) / (20 + steps))
        state = self.whole.state_dict()
        torch._foreach_lerp_(
            list(self.average.values()), [state[name] for name in self.average], 1 - keep
        )

    def log(self, record: dict[str, object]) -> None:
        with (self.folder / "eyes.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    @torch.no_grad()
    def validate(self, held: list[Views]) -> dict[str, float]:
        """What the averaged eyes read rightly."""
        live = copied(self.whole)
        self.whole.load_state_dict(self.average)
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        for batch in held:
            with torch.autocast("cpu", torch.bfloat16):
                hits_by_name = self.teacher.hits(
                    self.sight(normal(batch.pixels), batch.grid), batch
                )
            for name, (hits, many) in hits_by_name.items():
                right[name] += hits
                asked[name] += many
        self.whole.load_state_dict(live)
        return {name: round(right[name] / asked[name], 3) for name in asked if asked[name]}


def look(run: Run, options: argparse.Namespace) -> None:
    """Batches in order; a log line every two minutes, a checkpoint every five."""
    batch = options.batch
    first = run.done // batch
    easy = 0 if options.eyes else EASY
    gallery = Gallery(options.seed, first, options.pictures // batch - first, batch, easy)
    loader = DataLoader(gallery, batch_size=None, num_workers=options.workers, prefetch_factor=8)
    held_out = Gallery(HELD_SEED, 10**7, options.held // 12, 12)
    held = [held_out[k] for k in range(len(held_out))]
    began = noted = saved = time.time()
    since = run.done
    sums: dict[str, list[float]] = defaultdict(list)
    for item in loader:
        for name, value in run.step(item).items():
            sums[name].append(value)
        now = time.time()
        if now - noted > options.note:
            means = {name: round(sum(values) / len(values), 3) for name, values in sums.items()}
            speed = round((run.done - since) / (now - began), 1)
            run.log({"pictures": run.done, "per_second": speed, **means})
            run.log({"pictures": run.done, "held": run.validate(held)})
            sums.clear()
            noted = time.time()
        if now - saved > options.every:
            run.save()
            saved = now
    run.save()
    run.log({"pictures": run.done, "held": run.validate(held)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pictures", type=int, default=400_000)
    parser.add_argument("--rate", type=float, default=1.0, help="of the full learning rate")
    parser.add_argument("--constant", type=float, default=0.5, help="share before the rate falls")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--held", type=int, default=480, help="pictures held for validation")
    parser.add_argument("--every", type=float, default=300, help="seconds between checkpoints")
    parser.add_argument("--note", type=float, default=120, help="seconds between lines of figures")
    parser.add_argument("--eyes", type=Path, help="a checkpoint whose eyes to begin with")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run(options.run, options)
    if options.eyes:
        run.inherit(options.eyes)
    if options.resume and (options.run / "eyes.pt").exists():
        run.resume()
    look(run, options)


if __name__ == "__main__":
    main()
