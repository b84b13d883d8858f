"""Abilities: what can be asked about a scene or clip, and the right answers, in two languages.

An ability is a function ``(subject, rng, lang) -> [(question, answer), ...]``; to teach the model
something new, write one and add it to ``PICTURE_ABILITIES`` or ``CLIP_ABILITIES`` with its share of
the turns. Called by ``data.py``, ``tokenizer.py`` and ``evaluate.py``.
"""

from collections.abc import Callable

import numpy as np

from training.offtopic import ABOUT, SMALL_TALK
from training.scenes import COLOUR_NAMES, KIND_NAMES, Clip, Scene
from training.words import (
    COLOURS_ZH,
    DIRECTIONS_EN,
    DIRECTIONS_ZH,
    NOUNS_ZH,
    article,
    group_phrase,
    join,
    noun,
)

Rng = np.random.Generator
Turn = tuple[str, str]
LANGS = ("en", "zh")

COUNT_EN = (
    "How many {s} are there in the picture?",
    "How many {s} are there in the picture?",
    "How many {s} are there?",
    "How many {s} are in the picture?",
    "How many {s} are in the image?",
    "How many {s} are there in this image?",
    "How many {s} do you see?",
    "How many {s} can you see in the picture?",
    "How many {s} does the picture show?",
    "How many {s}?",
    "Count the {s}.",
    "Count the {s} in the picture.",
    "What is the number of {s}?",
    "Tell me how many {s} there are.",
)
COUNT_ZH = (
    "图中有几{m}{n}？",
    "图中有几{m}{n}？",
    "图中有多少{m}{n}？",
    "图片中有几{m}{n}？",
    "图片里有多少{m}{n}？",
    "这张图片中有几{m}{n}？",
    "这张图里有多少{n}？",
    "画面中有几{m}{n}？",
    "图里一共有几{m}{n}？",
    "有几{m}{n}？",
    "有多少{m}{n}？",
    "数一数图中的{n}。",
    "图中{n}的数量是多少？",
    "请问图中有几{m}{n}？",
)
COLOUR_EN = (
    "What colour {v} the {s}?",
    "What color {v} the {s}?",
    "What colour {v} the {s} in the picture?",
    "What color {v} the {s} in the image?",
    "Which colour {v} the {s}?",
    "What is the color of the {s}?",
    "What is the colour of the {s}?",
    "Tell me the colour of the {s}.",
)
COLOUR_ZH = (
    "{n}是什么颜色？",
    "{n}是什么颜色的？",
    "图中的{n}是什么颜色？",
    "图片里的{n}是什么颜色的？",
    "{n}的颜色是什么？",
    "图中{n}是什么颜色？",
    "请问{n}是什么颜色？",
    "这{m}{n}是什么颜色的？",
)
DESCRIBE_EN = (
    "Describe the picture.",
    "Describe this picture.",
    "Describe the image.",
    "Describe this image.",
    "Please describe this image in detail.",
    "What is in the picture?",
    "What is in this image?",
    "What's in this image?",
    "What do you see?",
    "What can you see in the picture?",
    "What does the picture show?",
    "Tell me about the picture.",
)
DESCRIBE_ZH = (
    "请描述这张图片。",
    "请描述这张图片",
    "描述一下这张图片。",
    "请描述一下这张图。",
    "请描述图片内容",
    "请描述下图片内容",
    "描述图片。",
    "图中有什么？",
    "图片里有什么？",
    "图中描绘的是什么景象？",
    "你看到了什么？",
    "这张图片里有哪些东西？",
)
KINDS_EN = ("Which kinds of things are there?", "What kinds of things are in the picture?")
KINDS_ZH = ("图中有哪几种东西？", "图片里有哪些种类的东西？")
PRESENT_EN = ("Is there {a} in the picture?", "Are there any {p} in the picture?", "Are there {p}?")
PRESENT_ZH = ("图中有{n}吗？", "图片里有没有{n}？", "有{n}吗？")
CLIP_EN = (
    "Describe the video.",
    "Describe this video.",
    "Please describe the video.",
    "Describe the clip.",
    "What happens in the video?",
    "What happens?",
    "What is happening in the clip?",
    "What does the video show?",
    "Tell me about the video.",
)
CLIP_ZH = (
    "请描述下视频内容",
    "请描述下视频内容。",
    "请描述视频内容。",
    "请描述一下视频内容。",
    "描述一下这个视频。",
    "视频里发生了什么？",
    "视频中有什么？",
    "这段视频讲了什么？",
    "请描述这个视频",
)
MOVES_EN = ("What moves?", "What is moving?", "What moves in the video?", "Which thing is moving?")
MOVES_ZH = ("什么在动？", "什么东西在动？", "视频里什么在移动？", "视频中什么在动？")
WAY_EN = (
    "Which way does the {n} move?",
    "Which way is the {n} moving?",
    "In which direction does the {n} move?",
    "Where does the {n} go?",
    "Which way does it move?",
)
WAY_ZH = (
    "{n}向哪个方向移动？",
    "{n}往哪边移动？",
    "{n}朝哪个方向动？",
    "视频里的{n}往哪里走？",
    "它向哪个方向移动？",
)
MOVER_EN = ("What colour is the {n}?", "What color is the {n}?", "What colour is the moving thing?")
MOVER_ZH = ("{n}是什么颜色？", "{n}是什么颜色的？", "移动的东西是什么颜色？")


def pick(rng: Rng, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def choose(rng: Rng, lang: str, english: tuple[str, ...], chinese: tuple[str, ...]) -> str:
    return pick(rng, english if lang == "en" else chinese)


def count_answer(kind: str, count: int, lang: str) -> str:
    if lang == "zh":
        measure, name = NOUNS_ZH[kind]
        return f"图中有{count}{measure}{name}。" if count else f"图中没有{name}。"
    if count == 0:
        return f"There are no {noun(kind, 0, lang)}."
    return f"There {'is' if count == 1 else 'are'} {count} {noun(kind, count, lang)}."


def count(scene: Scene, rng: Rng, lang: str) -> list[Turn]:
    """How many, for every kind that is there and sometimes for one that is not."""
    kinds = [kind for kind, _, _ in scene.groups()]
    absent = [kind for kind in KIND_NAMES if kind not in kinds]
    if not kinds or rng.random() < 0.25:
        kinds.append(str(rng.choice(absent)))
    turns = []
    for kind in kinds:
        measure, name = NOUNS_ZH[kind]
        words = {"s": noun(kind, 2, "en"), "m": measure, "n": name}
        question = choose(rng, lang, COUNT_EN, COUNT_ZH).format(**words)
        turns.append((question, count_answer(kind, scene.count(kind), lang)))
    return turns


def no_such(kind: str, lang: str) -> str:
    return (
        f"There are no {noun(kind, 0, lang)}."
        if lang == "en"
        else f"图中没有{noun(kind, 0, lang)}。"
    )


def colour(scene: Scene, rng: Rng, lang: str) -> list[Turn]:
    """The colour of every kind that is there, rarely of one that is not."""
    groups = scene.groups()
    if not groups or rng.random() < 0.08:
        present = [kind for kind, _, _ in groups]
        groups = [(str(rng.choice([k for k in KIND_NAMES if k not in present])), "", 0)]
    turns = []
    for kind, shade, number in groups:
        many = number > 1 and rng.random() < 0.7
        measure, name = NOUNS_ZH[kind]
        words = {"s": noun(kind, 1 + many, "en"), "v": "are" if many else "is"}
        question = choose(rng, lang, COLOUR_EN, COLOUR_ZH).format(**words, m=measure, n=name)
        if not number:
            answer = no_such(kind, lang)
        elif lang == "zh":
            answer = f"{name}是{COLOURS_ZH[shade]}的。"
        else:
            answer = f"The {words['s']} {words['v']} {shade}."
        turns.append((question, answer))
    return turns


def describe(scene: Scene, rng: Rng, lang: str) -> list[Turn]:
    """A list of what is there with colours and counts."""
    question = choose(rng, lang, DESCRIBE_EN, DESCRIBE_ZH)
    text = join([group_phrase(*group, lang) for group in scene.groups()], lang)
    if lang == "zh":
        return [(question, f"图中有{text}。" if text else "图中什么都没有。")]
    return [
        (question, f"{text[0].upper()}{text[1:]}." if text else "There is nothing in the picture.")
    ]


def kinds(scene: Scene, rng: Rng, lang: str) -> list[Turn]:
    """Which kinds there are, without counts."""
    names = [noun(kind, 2, lang) for kind, _, _ in scene.groups()]
    if not names:
        return []
    text = join(names, lang)
    answer = f"{text[0].upper()}{text[1:]}." if lang == "en" else f"图中有{text}。"
    return [(choose(rng, lang, KINDS_EN, KINDS_ZH), answer)]


def present(scene: Scene, rng: Rng, lang: str) -> list[Turn]:
    """Yes or no: is such a thing there?"""
    there = [kind for kind, _, _ in scene.groups()]
    absent = [kind for kind in KIND_NAMES if kind not in there]
    yes = bool(there) and rng.random() < 0.5
    kind = str(rng.choice(there if yes else absent))
    words = {"a": article(kind), "p": noun(kind, 2, "en"), "n": noun(kind, 2, "zh")}
    question = choose(rng, lang, PRESENT_EN, PRESENT_ZH).format(**words)
    if not yes:
        return [(question, ("No. " if lang == "en" else "没有，") + no_such(kind, lang))]
    answer = count_answer(kind, scene.count(kind), lang)
    return [(question, ("Yes. " if lang == "en" else "有，") + answer)]


def clip_describe(clip: Clip, rng: Rng, lang: str) -> list[Turn]:
    """What moves, its colour and its way, in one sentence."""
    thing, way = clip.mover, clip.direction
    question = choose(rng, lang, CLIP_EN, CLIP_ZH)
    if lang == "zh":
        measure, name = NOUNS_ZH[thing.kind]
        subject = f"一{measure}{COLOURS_ZH[thing.colour]}的{name}"
        return [(question, f"{subject}{DIRECTIONS_ZH[way]}移动。")]
    subject = article(f"{thing.colour} {thing.kind}")
    return [(question, f"{subject[0].upper()}{subject[1:]} moves {DIRECTIONS_EN[way]}.")]


def clip_mover(clip: Clip, rng: Rng, lang: str) -> list[Turn]:
    """What moves, and what colour it is."""
    thing = clip.mover
    if lang == "zh":
        measure, name = NOUNS_ZH[thing.kind]
        shade = COLOURS_ZH[thing.colour]
        asked = pick(rng, MOVER_ZH).format(n=name)
        moves = (pick(rng, MOVES_ZH), f"一{measure}{shade}的{name}在动。")
        return [moves, (asked, f"{name}是{shade}的。")]
    subject = article(f"{thing.colour} {thing.kind}")
    moves = (pick(rng, MOVES_EN), f"{subject[0].upper()}{subject[1:]} moves.")
    asked = pick(rng, MOVER_EN).format(n=thing.kind)
    return [moves, (asked, f"The {thing.kind} is {thing.colour}.")]


def clip_way(clip: Clip, rng: Rng, lang: str) -> list[Turn]:
    """Which way the moving thing goes."""
    kind, way = clip.mover.kind, clip.direction
    name = noun(kind, 1, lang)
    question = choose(rng, lang, WAY_EN, WAY_ZH).format(n=name)
    if lang == "zh":
        return [(question, f"{name}{DIRECTIONS_ZH[way]}移动。")]
    return [(question, f"The {name} moves {DIRECTIONS_EN[way]}.")]


def off_topic(rng: Rng, lang: str) -> Turn:
    """Anything else: the model says what it is."""
    return SMALL_TALK[lang](rng), ABOUT[lang]


PICTURE_ABILITIES: dict[str, tuple[Callable[[Scene, Rng, str], list[Turn]], float]] = {
    "count": (count, 0.46),
    "colour": (colour, 0.18),
    "describe": (describe, 0.24),
    "kinds": (kinds, 0.04),
    "present": (present, 0.08),
}
CLIP_ABILITIES: dict[str, tuple[Callable[[Clip, Rng, str], list[Turn]], float]] = {
    "clip_describe": (clip_describe, 0.4),
    "clip_mover": (clip_mover, 0.3),
    "clip_way": (clip_way, 0.3),
}
assert set(COLOURS_ZH) == set(COLOUR_NAMES) and set(NOUNS_ZH) == set(KIND_NAMES)
