"""Training samples: a scene or clip, a conversation about it, and its packing into tokens.

Sample ``i`` of a seed is always the same, so that a run can resume. ``train.py`` reads ``Pool``,
whose workers draw and pack; ``check_packing.py`` compares the packing with the real processor.
Seeds below 1000 belong to training, ``evaluate.py`` draws from others.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from training.model import Batch, token_id
from training.offtopic import ABOUT
from training.pixels import Seen, see_clip, see_picture
from training.scenes import (
    COLOUR_NAMES,
    DIRECTION_NAMES,
    KIND_NAMES,
    Clip,
    Scene,
    draw_scene,
    make_clip,
    make_scene,
    roughen,
)
from training.talk import CLIP_ABILITIES, LANGS, PICTURE_ABILITIES, off_topic
from training.tokenizer import SYSTEMS

Rng = np.random.Generator
CLIP_SHARE, TEXT_SHARE = 0.2, 0.04
# Stages of training, by the index of the sample at which each ends. "look": pictures without words,
# for the vision tower alone; "talk": conversations; the others: conversations and a share
# of pictures without words of which only the counts are read, a cheap way to see more of them.
STAGES = (
    (20_000, "look"),
    (33_000, "talk"),
    (37_312, "mixed"),
    (55_500, "look"),
    (71_000, "count"),
    (10**9, "speak"),
)
QUIET_SHARES = {"talk": 0.0, "mixed": 0.7, "count": 0.9, "speak": 0.0}
EASY = 32_000  # so many samples show at most four of a kind


def stage(index: int) -> str:
    return next(name for end, name in STAGES if index < end)


@dataclass
class Ask:
    """One question with its answer."""

    ability: str
    lang: str
    question: str
    answer: str


@dataclass
class Sample:
    """One packed sequence."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    seen: Seen | None = None
    subject: Scene | Clip | None = None
    end: int = -1
    asks: list[Ask] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)


class Packer:
    """Writes a sample token by token; ``position`` is where the next text token stands."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.sample = Sample()
        self.position = 0
        self.segment = 0

    def text(self, text: str, learn: bool = False) -> None:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        sample = self.sample
        sample.ids += ids
        sample.labels += ids if learn else [-100] * len(ids)
        sample.segments += [self.segment] * len(ids)
        sample.positions += [(self.position + k,) * 3 for k in range(len(ids))]
        self.position += len(ids)

    def block(self, pad: str, grid: tuple[int, int, int]) -> None:
        """``<|vision_start|>``, the pads of one picture or temporal patch, ``<|vision_end|>``."""
        rows, columns = grid[1] // 2, grid[2] // 2
        start = self.position + 1
        self.text("<|vision_start|>")
        sample = self.sample
        sample.ids += [token_id(self.tokenizer, pad)] * (rows * columns)
        sample.labels += [-100] * (rows * columns)
        sample.segments += [self.segment] * (rows * columns)
        sample.positions += [
            (start, start + r, start + c) for r in range(rows) for c in range(columns)
        ]
        self.position = start + max(rows, columns)
        self.text("<|vision_end|>")
        sample.end = len(sample.ids) - 1

    def media(self, seen: Seen) -> None:
        if not seen.times:
            return self.block("<|image_pad|>", seen.grid)
        self.text("<|vision_start|>")  # the processor puts its blocks inside the template's pair
        for time in seen.times:
            self.text(f"<{time:.1f} seconds>")
            self.block("<|video_pad|>", seen.grid)
        self.text("<|vision_end|>")
        self.sample.end = len(self.sample.ids) - 1

    def turn(self, ask: Ask, seen: Seen | None, first: bool, opened: bool) -> None:
        """A user turn and its answer; the picture stands before or after the question."""
        if not opened:
            self.text("<|im_start|>user\n")
        if seen and first:
            self.media(seen)
        self.text(ask.question)
        if seen and not first:
            self.media(seen)
        self.text("<|im_end|>\n<|im_start|>assistant\n")
        start = len(self.sample.ids)
        self.text(ask.answer + "<|im_end|>", learn=True)
        self.sample.asks.append(ask)
        self.sample.spans.append((start, len(self.sample.ids)))

    def star(self, asks: list[Ask], seen: Seen) -> None:
        """Branches that share the picture and do not see each other."""
        self.text("<|im_start|>user\n")
        self.media(seen)
        stem = self.position
        for k, ask in enumerate(asks):
            self.segment, self.position = k + 1, stem
            self.turn(ask, None, True, True)

    def talk(self, rng: Rng, asks: list[Ask], seen: Seen | None) -> None:
        """A plain conversation."""
        first = bool(rng.random() < 0.6)
        for k, ask in enumerate(asks):
            self.turn(ask, seen if k == 0 else None, first, False)
            self.text("\n")


def draw_counts(rng: Rng, index: int) -> list[int]:
    """How many of each kind; small numbers first."""
    if rng.random() < 0.02:
        return []
    groups = int(rng.choice([1, 2, 3], p=[0.4, 0.38, 0.22]))
    counts = [int(rng.integers(1, 5)) for _ in range(groups)]
    if index >= EASY and rng.random() < 0.3:
        counts[0] = int(rng.integers(4, 10))
        counts[1:] = [int(rng.integers(1, 4)) for _ in counts[1:]]
    return counts


def draw_size(rng: Rng, low: int, high: int) -> tuple[int, int]:
    return int(rng.integers(low, high)), int(rng.integers(low, high))


def picture_asks(rng: Rng, scene: Scene, index: int, turns: int) -> list[Ask]:
    names = list(PICTURE_ABILITIES)
    shares = [share for _, share in PICTURE_ABILITIES.values()]
    return subject_asks(rng, PICTURE_ABILITIES, names, shares, scene, turns)


def subject_asks(
    rng: Rng, abilities: Any, names: list[str], shares: list[float], subject: Any, turns: int
) -> list[Ask]:
    """``turns`` questions, mostly in one language, some of them off topic."""
    asks: list[Ask] = []
    lang = str(rng.choice(LANGS))
    used: set[str] = set()
    while len(asks) < turns:
        if rng.random() < 0.2:
            lang = str(rng.choice(LANGS))
        if rng.random() < 0.07:
            asks.append(Ask("about", lang, *off_topic(rng, lang)))
            continue
        name = str(rng.choice(names, p=shares))
        for question, answer in abilities[name][0](subject, rng, lang):
            if question + answer not in used:
                asks.append(Ask(name, lang, question, answer))
                used.add(question + answer)
    return asks[:turns]


def text_asks(rng: Rng) -> list[Ask]:
    """Questions without any picture, some of which ask about one."""
    asks = []
    scene = make_scene(rng, [1], 64, 64)
    for _ in range(int(rng.integers(1, 4))):
        lang = str(rng.choice(LANGS))
        question, answer = off_topic(rng, lang)
        if rng.random() < 0.25:
            name = str(rng.choice(list(PICTURE_ABILITIES)))
            question = (PICTURE_ABILITIES[name][0](scene, rng, lang) or [(question, "")])[0][0]
        asks.append(Ask("about", lang, question, answer))
    return asks


def draw_picture(rng: Rng, index: int) -> tuple[Scene, Seen]:
    dice = rng.random()
    span = (128, 208) if dice < 0.8 else (144, 258) if dice < 0.95 else (240, 400)
    counts = draw_counts(rng, index)
    scene = make_scene(rng, counts, *draw_size(rng, *span))
    picture = roughen(rng, draw_scene(scene, fine=3 if span[1] < 260 else 2))
    return scene, see_picture(scene, picture)


def make_sample(tokenizer: PreTrainedTokenizerBase, seed: int, index: int, plain: bool) -> Sample:
    """Sample ``index``; ``plain`` asks for single-turn pictures and clips (for validation)."""
    rng = np.random.default_rng([seed, index])
    packer = Packer(tokenizer)
    dice = rng.random()
    if stage(index) == "look":
        clip = make_clip(rng, *draw_size(rng, 96, 176), int(rng.integers(0, 3)))
        packer.sample.seen = see_clip(clip) if dice < 0.1 else draw_picture(rng, index)[1]
        packer.media(packer.sample.seen)
        return packer.sample
    if rng.random() < 0.5 and not plain:
        packer.text(f"<|im_start|>system\n{rng.choice(SYSTEMS)}<|im_end|>\n")
    if dice < TEXT_SHARE and not plain:
        packer.talk(rng, text_asks(rng), None)
        return packer.sample
    subject: Scene | Clip
    if dice < TEXT_SHARE + CLIP_SHARE:
        subject = make_clip(rng, *draw_size(rng, 96, 176), int(rng.integers(0, 3)))
        seen = see_clip(subject)
        names, shares = list(CLIP_ABILITIES), [share for _, share in CLIP_ABILITIES.values()]
        asks = subject_asks(rng, CLIP_ABILITIES, names, shares, subject, 4)
    else:
        subject, seen = draw_picture(rng, index)
        asks = picture_asks(rng, subject, index, 6)
    packer.sample.seen, packer.sample.subject = seen, subject
    if rng.random() < QUIET_SHARES[stage(index)]:
        packer.text("<|im_start|>user\n")
        packer.media(seen)
    elif plain or rng.random() < 0.65:
        packer.star(asks, seen)
    else:
        packer.talk(rng, asks[: int(rng.integers(1, 5))], seen)
    return packer.sample


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def end_targets(samples: list[Sample]) -> tuple[torch.Tensor, ...]:
    """Where the last picture ends in each row, and what the heads should read there."""
    ends, counts, colours, motion = [], [], [], []
    for row, sample in enumerate(samples):
        subject = sample.subject
        if subject is None:
            continue
        scene = subject.scene if isinstance(subject, Clip) else subject
        shade = {kind: COLOUR_NAMES.index(colour) for kind, colour, _ in scene.groups()}
        ends.append([row, sample.end])
        counts.append([min(scene.count(kind), 9) for kind in KIND_NAMES])
        colours.append([shade.get(kind, -100) for kind in KIND_NAMES])
        moves = [-100] * 3
        if isinstance(subject, Clip):
            moves = [KIND_NAMES.index(subject.mover.kind), shade[subject.mover.kind]]
            moves.append(DIRECTION_NAMES.index(subject.direction))
        motion.append(moves)
    return tuple(torch.tensor(part, dtype=torch.long) for part in (ends, counts, colours, motion))


def collate(samples: list[Sample]) -> Batch:
    seen = [sample.seen for sample in samples if sample.seen is not None]
    filler = [(0, 0, 0)]
    length = max(len(sample.ids) for sample in samples)
    places = [s.positions + filler * (length - len(s.ids)) for s in samples]
    none = np.zeros((0, 1536), np.uint8)
    patches = torch.from_numpy(np.concatenate([none, *(part.patches for part in seen)]))
    kind = np.concatenate([np.zeros(0, np.int64), *(part.cells.kind for part in seen)])
    colour = np.concatenate([np.zeros(0, np.int64), *(part.cells.colour for part in seen)])
    mass = np.concatenate(
        [np.zeros((0, len(KIND_NAMES)), np.float32), *(p.cells.mass for p in seen)]
    )
    return Batch(
        pad([s.ids for s in samples], 0),
        pad([s.labels for s in samples], -100),
        pad([s.segments for s in samples], -1),
        torch.tensor(places).permute(2, 0, 1).contiguous(),
        patches,
        torch.tensor([part.grid for part in seen], dtype=torch.long).view(-1, 3),
        torch.from_numpy(kind),
        torch.from_numpy(colour),
        torch.from_numpy(mass),
        *end_targets(samples),
    )


class Pool(Dataset[list[Batch]]):
    """Item ``k`` is a pool of samples, cut into batches of about equal length."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, seed: int, first: int, last: int, batch: int
    ) -> None:
        self.tokenizer, self.seed, self.batch = tokenizer, seed, batch
        self.first, self.size = first, 8 * batch
        self.count = (last - first) // self.size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> list[Batch]:
        if item >= self.count:
            raise IndexError(item)
        start = self.first + item * self.size
        samples = [
            make_sample(self.tokenizer, self.seed, start + k, False) for k in range(self.size)
        ]
        samples.sort(key=lambda sample: len(sample.ids))
        cuts = [samples[k : k + self.batch] for k in range(0, self.size, self.batch)]
        order = np.random.default_rng([self.seed, start, 1]).permutation(len(cuts))
        return [collate(cuts[k]) for k in order]


assert set(ABOUT) == set(LANGS)
