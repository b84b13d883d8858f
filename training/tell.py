"""More abilities: signs, clips and two pictures, as ``talk.py`` has them for single scenes.

Called by ``data.py``, ``tokenizer.py`` and ``evaluate.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.phrases import (
    BOX_EN,
    BOX_ZH,
    CLIP_EN,
    CLIP_ZH,
    COUNT_EN,
    COUNT_ZH,
    FIRST_EN,
    FIRST_ZH,
    IN_EN,
    IN_ZH,
    LAST_EN,
    LAST_ZH,
    MORE_EN,
    MORE_ZH,
    MOVER_EN,
    MOVER_ZH,
    MOVES_EN,
    MOVES_ZH,
    READ_EN,
    READ_ZH,
    WAY_EN,
    WAY_ZH,
)
from training.scenes import KIND_NAMES, Clip, Scene
from training.signs import Sign
from training.talk import Turn, choose, count_answer, pick
from training.words import COLOURS_ZH, DIRECTIONS_EN, DIRECTIONS_ZH, NOUNS_ZH, article, noun

Rng = np.random.Generator


@dataclass(frozen=True)
class Pair:
    """Two pictures in one question."""

    scenes: tuple[Scene, Scene]


def upper(text: str) -> str:
    return text[0].upper() + text[1:]


def box(sign: Sign, rng: Rng, lang: str) -> list[Turn]:
    """The digit that belongs in the marked box."""
    digit = sign.text[sign.box]
    question = choose(rng, lang, BOX_EN, BOX_ZH)
    return [(question, f"The digit is {digit}." if lang == "en" else f"方框处应该是数字{digit}。")]


def nothing(_: Sign, rng: Rng, lang: str) -> list[Turn]:
    """How many of something, where only characters are to be seen."""
    kind = str(rng.choice(KIND_NAMES))
    measure, name = NOUNS_ZH[kind]
    question = choose(rng, lang, COUNT_EN, COUNT_ZH)
    question = question.format(s=noun(kind, 2, "en"), m=measure, n=name)
    return [(question, count_answer(kind, 0, lang))]


def read(sign: Sign, rng: Rng, lang: str) -> list[Turn]:
    """A word or number, read aloud."""
    what = ("number", "数字") if sign.text.isdigit() else ("word", "文字")
    word = what[lang == "zh"]
    if rng.random() < 0.2:
        word = ("text", "文字")[lang == "zh"]
    question = choose(rng, lang, READ_EN, READ_ZH).format(w=word)
    return [(question, f"It says {sign.text}." if lang == "en" else f"图中写着{sign.text}。")]


def movement(clip: Clip, phase: int, lang: str) -> str:
    """What moves in a phase, its colour and its way."""
    thing, way = clip.mover(phase), clip.moves[phase].direction
    if lang == "en":
        return f"{article(f'{thing.colour} {thing.kind}')} moves {DIRECTIONS_EN[way]}"
    measure, name = NOUNS_ZH[thing.kind]
    return f"一{measure}{COLOURS_ZH[thing.colour]}的{name}{DIRECTIONS_ZH[way]}移动"


def clip_describe(clip: Clip, rng: Rng, lang: str) -> list[Turn]:
    """What moves, its colour and its way, in one sentence; two movements in their order."""
    question = choose(rng, lang, CLIP_EN, CLIP_ZH)
    parts = [movement(clip, phase, lang) for phase in range(len(clip.moves))]
    if len(parts) == 1:
        return [(question, f"{upper(parts[0])}." if lang == "en" else f"{parts[0]}。")]
    answer = (
        f"First {parts[0]}, then {parts[1]}."
        if lang == "en"
        else f"先是{parts[0]}，然后{parts[1]}。"
    )
    return [(question, answer)]


def clip_order(clip: Clip, rng: Rng, lang: str) -> list[Turn]:
    """What happens first, and what then."""
    if len(clip.moves) < 2:
        return []
    first, last = movement(clip, 0, lang), movement(clip, 1, lang)
    return [
        (
            choose(rng, lang, FIRST_EN, FIRST_ZH),
            f"First {first}." if lang == "en" else f"先是{first}。",
        ),
        (
            choose(rng, lang, LAST_EN, LAST_ZH),
            f"Then {last}." if lang == "en" else f"然后{last}。",
        ),
    ]


def clip_mover(clip: Clip, rng: Rng, lang: str) -> list[Turn]:
    """What moves, and what colour it is."""
    if len(clip.moves) > 1:
        return []
    thing = clip.mover()
    if lang == "zh":
        measure, name = NOUNS_ZH[thing.kind]
        shade = COLOURS_ZH[thing.colour]
        asked = pick(rng, MOVER_ZH).format(n=name)
        moves = (pick(rng, MOVES_ZH), f"一{measure}{shade}的{name}在动。")
        return [moves, (asked, f"{name}是{shade}的。")]
    subject = article(f"{thing.colour} {thing.kind}")
    moves = (pick(rng, MOVES_EN), f"{upper(subject)} moves.")
    asked = pick(rng, MOVER_EN).format(n=thing.kind)
    return [moves, (asked, f"The {thing.kind} is {thing.colour}.")]


def clip_way(clip: Clip, rng: Rng, lang: str) -> list[Turn]:
    """Which way a moving thing goes."""
    phase = int(rng.integers(len(clip.moves)))
    way, name = clip.moves[phase].direction, noun(clip.mover(phase).kind, 1, lang)
    asked = pick(rng, tuple(q for q in (WAY_EN, WAY_ZH)[lang == "zh"] if "{n}" in q))
    if lang == "zh":
        return [(asked.format(n=name), f"{name}{DIRECTIONS_ZH[way]}移动。")]
    return [(asked.format(n=name), f"The {name} moves {DIRECTIONS_EN[way]}.")]


def more(pair: Pair, rng: Rng, lang: str) -> list[Turn]:
    """Which of two pictures has more of a kind; the counts come first, so that the model need not
    compare what it has not yet said."""
    shown = [kind for scene in pair.scenes for kind, _, _ in scene.groups()]
    kind = str(rng.choice(shown))
    measure, name = NOUNS_ZH[kind]
    one, two = (scene.count(kind) for scene in pair.scenes)
    question = choose(rng, lang, MORE_EN, MORE_ZH).format(s=noun(kind, 2, "en"), n=name)
    if lang == "en":
        best = "neither" if one == two else f"the {'first' if one > two else 'second'}"
        return [(question, f"The first picture has {one}, the second has {two}: {best} has more.")]
    best = "一样多" if one == two else f"第{'一' if one > two else '二'}张更多"
    facts = f"第一张图中有{one}{measure}，第二张图中有{two}{measure}"
    return [(question, f"{facts}，{best}。")]


def which(pair: Pair, rng: Rng, lang: str) -> list[Turn]:
    """How many there are in one of the two pictures."""
    turns = []
    for index, scene in enumerate(pair.scenes):
        groups = scene.groups()
        kind, _, number = groups[rng.integers(len(groups))]
        measure, name = NOUNS_ZH[kind]
        nth = ("first", "second", "第一", "第二")[index + 2 * (lang == "zh")]
        words = {"s": noun(kind, 2, "en"), "m": measure, "n": name, "th": nth}
        question = choose(rng, lang, IN_EN, IN_ZH).format(**words)
        turns.append((question, count_answer(kind, number, lang)))
    return turns


ROW_ABILITIES: dict[str, tuple[Callable[[Sign, Rng, str], list[Turn]], float]] = {
    "box": (box, 0.9),
    "nothing": (nothing, 0.1),
}
WORD_ABILITIES: dict[str, tuple[Callable[[Sign, Rng, str], list[Turn]], float]] = {
    "read": (read, 0.9),
    "nothing": (nothing, 0.1),
}
CLIP_ABILITIES: dict[str, tuple[Callable[[Clip, Rng, str], list[Turn]], float]] = {
    "clip_describe": (clip_describe, 0.4),
    "clip_order": (clip_order, 0.2),
    "clip_mover": (clip_mover, 0.2),
    "clip_way": (clip_way, 0.2),
}
PAIR_ABILITIES: dict[str, tuple[Callable[[Pair, Rng, str], list[Turn]], float]] = {
    "more": (more, 0.6),
    "which": (which, 0.4),
}
