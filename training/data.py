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

from training.contents import draw_counts, draw_size, odd_picture, picture_of
from training.eyes import Sight, normal
from training.model import Batch, token_id
from training.offtopic import ABOUT
from training.pixels import Seen, see_clip, see_picture
from training.scenes import Clip, Scene, make_clip, make_scene, roughen
from training.signs import Sign, make_row, make_word, sign_size
from training.talk import LANGS, SCENE_ABILITIES, off_topic
from training.tell import CLIP_ABILITIES, PAIR_ABILITIES, ROW_ABILITIES, WORD_ABILITIES, Pair
from training.tokenizer import SYSTEMS

Rng = np.random.Generator
Subject = Scene | Sign | Clip | Pair | None
SHARES = {
    "scene": 0.5,
    "row": 0.03,
    "word": 0.15,
    "clip": 0.18,
    "pair": 0.09,
    "odd": 0.02,
    "text": 0.03,
}


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
    seen: list[Seen] = field(default_factory=list)
    subject: Subject = None
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

    def media(self, seen: Seen) -> None:
        """One picture or clip."""
        self.sample.seen.append(seen)
        if not seen.times:
            return self.block("<|image_pad|>", seen.grid)
        self.text("<|vision_start|>")  # the processor puts its blocks inside the template's pair
        for time in seen.times:
            self.text(f"<{time:.1f} seconds>")
            self.block("<|video_pad|>", seen.grid)
        self.text("<|vision_end|>")

    def turn(self, ask: Ask, seen: list[Seen], first: bool, opened: bool) -> None:
        """A user turn and its answer; the pictures stand before or after the question."""
        if not opened:
            self.text("<|im_start|>user\n")
        for one in seen if first else []:
            self.media(one)
        self.text(ask.question)
        for one in [] if first else seen:
            self.media(one)
        self.text("<|im_end|>\n<|im_start|>assistant\n")
        start = len(self.sample.ids)
        self.text(ask.answer + "<|im_end|>", learn=True)
        self.sample.asks.append(ask)
        self.sample.spans.append((start, len(self.sample.ids)))

    def star(self, asks: list[Ask], seen: list[Seen]) -> None:
        """Branches that share the pictures and do not see each other."""
        self.text("<|im_start|>user\n")
        for one in seen:
            self.media(one)
        stem = self.position
        for k, ask in enumerate(asks):
            self.segment, self.position = k + 1, stem
            self.turn(ask, [], True, True)

    def talk(self, rng: Rng, asks: list[Ask], seen: list[Seen]) -> None:
        """A plain conversation."""
        first = bool(rng.random() < 0.6)
        for k, ask in enumerate(asks):
            self.turn(ask, seen if k == 0 else [], first, False)
            self.text("\n")


def subject_asks(rng: Rng, abilities: Any, subject: Any, turns: int) -> list[Ask]:
    """At most ``turns`` questions, mostly in one language, some of them off topic."""
    asks: list[Ask] = []
    names, shares = list(abilities), [share for _, share in abilities.values()]
    lang = str(rng.choice(LANGS))
    used: set[str] = set()
    for _ in range(3 * turns):
        if rng.random() < 0.3:
            lang = str(rng.choice(LANGS))
        if rng.random() < 0.06:
            asks.append(Ask("about", lang, *off_topic(rng, lang)))
            continue
        name = str(rng.choice(names, p=shares))
        for question, answer in abilities[name][0](subject, rng, lang):
            if question + answer not in used:
                asks.append(Ask(name, lang, question, answer))
                used.add(question + answer)
        if len(asks) >= turns:
            break
    return asks[:turns]


def blind_asks(rng: Rng, odd: bool) -> list[Ask]:
    """Questions without any picture or about an odd one, some as if there were a scene."""
    asks = []
    scene = make_scene(rng, [1, 2], 64, 64)
    for _ in range(int(rng.integers(2, 5))):
        lang = str(rng.choice(LANGS))
        question, _ = off_topic(rng, lang)
        if rng.random() < (0.7 if odd else 0.25):
            name = str(rng.choice(list(SCENE_ABILITIES)))
            question = (SCENE_ABILITIES[name][0](scene, rng, lang) or [(question, "")])[0][0]
        asks.append(Ask("about", lang, question, ABOUT[lang]))
    return asks


def picture_size(rng: Rng) -> tuple[int, int]:
    """Mostly near what the model sees, sometimes anything."""
    return draw_size(rng, *((64, 448) if rng.random() < 0.15 else (120, 260)))


def scene_and_picture(rng: Rng) -> tuple[Scene, Seen]:
    size = picture_size(rng)
    dice = rng.random()
    counts = [] if dice < 0.015 else draw_counts(rng, True)
    if dice > 0.6:  # one of each, of which one can tell where they are
        counts = [1] * int(rng.integers(2, 5))
    scene = make_scene(rng, counts, *size)
    return scene, see_picture(roughen(rng, picture_of(scene)))


def draw_sign_of(rng: Rng, kind: str) -> tuple[Sign, Seen]:
    length = int(rng.integers(3, 7) if kind == "row" else rng.integers(2, 8))
    size = sign_size(rng, length)
    sign = make_row(rng, *size, length) if kind == "row" else make_word(rng, *size)
    return sign, see_picture(roughen(rng, picture_of(sign)))


def draw_subject(rng: Rng, kind: str) -> tuple[Subject, list[Seen], list[Ask]]:
    """What a conversation is about, as the model sees it, and what is said of it."""
    if kind == "scene":
        scene, seen = scene_and_picture(rng)
        return scene, [seen], subject_asks(rng, SCENE_ABILITIES, scene, 6)
    if kind == "clip":
        size = draw_size(rng, 90, 240, 1.8)
        clip = make_clip(rng, *size, int(rng.integers(0, 3)), int(rng.integers(1, 3)))
        return clip, [see_clip(clip)], subject_asks(rng, CLIP_ABILITIES, clip, 4)
    if kind == "pair":
        scenes, seen_both = zip(*(scene_and_picture(rng) for _ in range(2)), strict=True)
        if not all(scene.things for scene in scenes):
            return draw_subject(rng, kind)
        if rng.random() < 0.6:  # often the same kinds in both
            names = tuple(kind for kind, _, _ in scenes[0].groups())
            counts = draw_counts(rng, True)[: len(names)]
            other = make_scene(rng, counts, *picture_size(rng), names[: len(counts)])
            seen_both = (seen_both[0], see_picture(roughen(rng, picture_of(other))))
            scenes = (scenes[0], other)
        pair = Pair((scenes[0], scenes[1]))
        return pair, list(seen_both), subject_asks(rng, PAIR_ABILITIES, pair, 4)
    if kind == "odd":
        return None, [see_picture(odd_picture(rng, *picture_size(rng)))], blind_asks(rng, True)
    if kind == "text":
        return None, [], blind_asks(rng, False)
    sign, seen = draw_sign_of(rng, kind)
    abilities: Any = ROW_ABILITIES if kind == "row" else WORD_ABILITIES
    return sign, [seen], subject_asks(rng, abilities, sign, 3)


def make_sample(tokenizer: PreTrainedTokenizerBase, seed: int, index: int, plain: bool) -> Sample:
    """Sample ``index``; ``plain`` asks for a star of questions (for validation)."""
    torch.set_num_threads(1)
    rng = np.random.default_rng([seed, index])
    packer = Packer(tokenizer)
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if rng.random() < 0.5 and not plain:
        packer.text(f"<|im_start|>system\n{rng.choice(SYSTEMS)}<|im_end|>\n")
    packer.sample.subject, seen, asks = draw_subject(rng, kind)
    if kind == "text" or (not plain and rng.random() < 0.35):
        packer.talk(rng, asks[: int(rng.integers(1, 5))], seen)
    else:
        packer.star(asks, seen)
    return packer.sample


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


@torch.no_grad()
def look(sight: Sight, seen: list[Seen]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and deepstack features of all pictures and clips, in order; one grid at a time."""
    width = int(sight.visual.config.out_hidden_size)
    parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for wanted in {one.grid[1:] for one in seen}:
        members = [k for k, one in enumerate(seen) if one.grid[1:] == wanted]
        pixels = [torch.from_numpy(seen[k].patches) for k in members]
        rows = torch.cat(pixels).view(-1, wanted[0] * wanted[1], 1536)
        made = sight(normal(rows), wanted)
        sizes = [seen[k].grid[0] for k in members]
        both = zip(made.tokens.split(sizes), made.deep.split(sizes), strict=True)
        parts.update(zip(members, both, strict=True))
    none = torch.zeros(0, width)
    ordered = [parts[k] for k in range(len(seen))]
    tokens = torch.cat([none, *(tokens.flatten(0, 1) for tokens, _ in ordered)])
    return tokens, torch.cat([none, *(deep.flatten(0, 1) for _, deep in ordered)])


def collate(samples: list[Sample], sight: Sight) -> Batch:
    filler = [(0, 0, 0)]
    length = max(len(sample.ids) for sample in samples)
    places = [s.positions + filler * (length - len(s.ids)) for s in samples]
    return Batch(
        pad([s.ids for s in samples], 0),
        pad([s.labels for s in samples], -100),
        pad([s.segments for s in samples], -1),
        torch.tensor(places).permute(2, 0, 1).contiguous(),
        *look(sight, [seen for sample in samples for seen in sample.seen]),
    )


class Pool(Dataset[list[Batch]]):
    """Item ``k`` is a pool of samples, cut into batches of about equal length. Its workers look at
    the pictures too, with eyes that stand still."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sight: Sight,
        seed: int,
        first: int,
        last: int,
        batch: int,
    ) -> None:
        self.tokenizer, self.sight, self.seed, self.batch = tokenizer, sight, seed, batch
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
        with torch.autocast("cpu", torch.bfloat16):
            return [collate(cuts[k], self.sight) for k in order]
