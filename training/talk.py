"""Abilities: what can be asked about a drawn scene, and the right answers, in two languages.

An ability is a function ``(subject, rng, lang) -> [(question, answer), ...]``; to teach the model
something new, write one and add it to ``SCENE_ABILITIES`` here, or to its like in ``tell.py``
(signs, clips, two pictures), with its share of the turns. A question has one right answer, word for
word. Called by ``data.py``, ``tokenizer.py`` and ``evaluate.py``.
"""

from collections.abc import Callable

import numpy as np

from training.offtopic import ABOUT, SMALL_TALK, STRANGERS_EN, STRANGERS_ZH, cut
from training.phrases import (
    BOX_EN,
    BOX_ZH,
    COLOUR_EN,
    COLOUR_ZH,
    COUNT_EN,
    COUNT_ZH,
    DESCRIBE_EN,
    DESCRIBE_ZH,
    KINDS_EN,
    KINDS_ZH,
    LEVELS_EN,
    LEVELS_ZH,
    PRESENT_EN,
    PRESENT_ZH,
    READ_EN,
    READ_ZH,
    SIDES_EN,
    SIDES_ZH,
    WHERE_EN,
    WHERE_ZH,
)
from training.scenes import COLOUR_NAMES, KIND_NAMES, Scene, Thing
from training.words import (
    COLOURS_ZH,
    NOUNS_ZH,
    PLACES_EN,
    PLACES_ZH,
    SIDES,
    article,
    group_phrase,
    join,
    noun,
)

Rng = np.random.Generator
Turn = tuple[str, str]
LANGS = ("en", "zh")


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


def place_of(thing: Thing, scene: Scene) -> str:
    """``top left``, ``left``, ``middle``, …; empty where it could be called one or the other."""
    short = min(scene.width, scene.height)
    shifts = (thing.x * short / scene.width - 0.5, thing.y * short / scene.height - 0.5)
    if any(0.09 < abs(shift) < 0.17 for shift in shifts):
        return ""
    across = "" if abs(shifts[0]) < 0.13 else "left" if shifts[0] < 0 else "right"
    down = "" if abs(shifts[1]) < 0.13 else "top" if shifts[1] < 0 else "bottom"
    return f"{down} {across}".strip() or "middle"


def singles(scene: Scene) -> list[Thing]:
    """The things of which there is just one."""
    return [thing for thing in scene.things if scene.count(thing.kind) == 1]


def where(scene: Scene, rng: Rng, lang: str) -> list[Turn]:
    """In which part of the picture each single thing is."""
    turns = []
    for thing in singles(scene):
        place, name = place_of(thing, scene), noun(thing.kind, 1, lang)
        if place:
            question = choose(rng, lang, WHERE_EN, WHERE_ZH).format(n=name)
            spot = PLACES_EN[place] if lang == "en" else PLACES_ZH[place]
            turns.append(
                (question, f"The {name} is {spot}." if lang == "en" else f"{name}{spot}。")
            )
    return turns


def beside(scene: Scene, rng: Rng, lang: str) -> list[Turn]:
    """Left or right of, above or below another thing."""
    alone = singles(scene)
    if len(alone) < 2:
        return []
    one, other = (alone[k] for k in rng.permutation(len(alone))[:2])
    names = {"n": noun(one.kind, 1, lang), "o": noun(other.kind, 1, lang)}
    turns = []
    for way, apart, phrases in (
        ("left right", one.x - other.x, (SIDES_EN, SIDES_ZH)),
        ("above below", one.y - other.y, (LEVELS_EN, LEVELS_ZH)),
    ):
        if abs(apart) > 0.2:
            side = way.split()[apart > 0]
            question = choose(rng, lang, *phrases).format(**names)
            answer = (
                f"The {names['n']} is {SIDES[side][0]} the {names['o']}."
                if lang == "en"
                else f"{names['n']}在{names['o']}的{SIDES[side][1]}。"
            )
            turns.append((question, answer))
    return turns


def agree(scene: Scene, rng: Rng, lang: str) -> list[Turn]:
    """Is it this many, is it this colour? Yes or no, and how it is."""
    groups = scene.groups()
    if not groups:
        return []
    kind, shade, number = groups[rng.integers(len(groups))]
    measure, name = NOUNS_ZH[kind]
    right = rng.random() < 0.5
    if rng.random() < 0.5:
        near = [n for n in range(max(1, number - 2), min(9, number + 2) + 1) if n != number]
        said = number if right else int(rng.choice(near))
        asked = (
            f"{'Is' if said == 1 else 'Are'} there {said} {noun(kind, said, 'en')}?",
            f"图中有{said}{measure}{name}吗？",
        )[lang == "zh"]
        fact = count_answer(kind, number, lang)
    else:
        said_shade = shade if right else str(rng.choice([c for c in COLOUR_NAMES if c != shade]))
        verb = "are" if number > 1 else "is"
        many = noun(kind, number, "en")
        asked = (
            f"{verb.title()} the {many} {said_shade}?",
            f"{name}是{COLOURS_ZH[said_shade]}的吗？",
        )[lang == "zh"]
        fact = f"The {many} {verb} {shade}." if lang == "en" else f"{name}是{COLOURS_ZH[shade]}的。"
    yes = ("Yes. ", "是的，") if right else ("No. ", "不是，")
    return [(asked, yes[lang == "zh"] + fact)]


def without(scene: Scene, rng: Rng, lang: str) -> list[Turn]:
    """Questions about a box or a text that is not there."""
    if rng.random() < 0.5:
        question = choose(rng, lang, BOX_EN, BOX_ZH)
        return [(question, "There is no box in the picture." if lang == "en" else "图中没有方框。")]
    word = ("text", "文字")[lang == "zh"]
    question = choose(rng, lang, READ_EN, READ_ZH).format(w=word)
    return [(question, "There is no text in the picture." if lang == "en" else "图中没有文字。")]


def off_topic(rng: Rng, lang: str) -> Turn:
    """Anything else, or a thing that is never drawn: the model says what it is."""
    if rng.random() < 0.2:
        name = pick(rng, cut(STRANGERS_EN if lang == "en" else STRANGERS_ZH))
        templates = ((COUNT_EN, COLOUR_EN, WHERE_EN, PRESENT_EN), (COUNT_ZH, COLOUR_ZH, WHERE_ZH))
        options = templates[lang == "zh"]
        words = {"s": f"{name}s", "v": "are", "n": name, "m": "个", "a": article(name)}
        question = pick(rng, options[rng.integers(len(options))])
        return question.format(**words, p=f"{name}s"), ABOUT[lang]
    return SMALL_TALK[lang](rng), ABOUT[lang]


SCENE_ABILITIES: dict[str, tuple[Callable[[Scene, Rng, str], list[Turn]], float]] = {
    "count": (count, 0.2),
    "colour": (colour, 0.06),
    "describe": (describe, 0.16),
    "kinds": (kinds, 0.02),
    "present": (present, 0.07),
    "where": (where, 0.17),
    "beside": (beside, 0.14),
    "agree": (agree, 0.16),
    "without": (without, 0.02),
}
assert set(COLOURS_ZH) == set(COLOUR_NAMES) and set(NOUNS_ZH) == set(KIND_NAMES)
