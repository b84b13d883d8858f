"""Takes the model's answers apart: counts, colours, kinds, groups and directions named in a text.

Used by ``evaluate.py``; knows the words of ``words.py`` and nothing of scenes.
"""

import re

from training.words import COLOURS_ZH, NOUNS_EN, NOUNS_ZH, NUMBERS_EN, NUMBERS_ZH

KIND_OF_EN = {form: kind for kind, forms in NOUNS_EN.items() for form in forms}
NAMES_EN = "|".join(sorted(KIND_OF_EN, key=len, reverse=True))
NAMES_ZH = "|".join(name for _, name in NOUNS_ZH.values())
KIND_OF_ZH = {name: kind for kind, (_, name) in NOUNS_ZH.items()}
COLOUR_OF_ZH = {name: colour for colour, name in COLOURS_ZH.items()}
COLOUR_NAMES_EN = "|".join(COLOURS_ZH)
COLOUR_NAMES_ZH = "|".join(COLOUR_OF_ZH)
WAYS_EN = {"left": r"\bleft\b", "right": r"\bright\b", "up": r"\bup\b", "down": r"\bdown\b"}
WAYS_ZH = {"left": "左", "right": "右", "up": "上", "down": "下"}


def number(word: str) -> int:
    """``3``, ``three``, ``三``, ``两``, ``a``, ``no``; -1 for anything else."""
    word = word.lower()
    if word.isdecimal():
        return int(word)
    if word in ("a", "an", "二"):
        return 2 if word == "二" else 1
    for words in (NUMBERS_EN, NUMBERS_ZH):
        if word in words:
            return words.index(word)
    return -1


def count_in(answer: str, lang: str) -> tuple[str, int] | None:
    """(kind, count) of an answer like ``There are 3 sheep.``; none where it names no such thing."""
    if lang == "en":
        found = re.search(rf"\b(\w+) ({NAMES_EN})\b", answer)
        return (KIND_OF_EN[found[2]], number(found[1])) if found else None
    missing = re.search(rf"没有({NAMES_ZH})", answer)
    if missing:
        return KIND_OF_ZH[missing[1]], 0
    found = re.search(rf"(\d+|[零一二两三四五六七八九])\D?({NAMES_ZH})", answer)
    return (KIND_OF_ZH[found[2]], number(found[1])) if found else None


def colours_in(answer: str, lang: str) -> set[str]:
    if lang == "en":
        return set(re.findall(rf"\b({COLOUR_NAMES_EN})\b", answer.lower()))
    return {COLOUR_OF_ZH[name] for name in re.findall(COLOUR_NAMES_ZH, answer)}


def kinds_in(answer: str, lang: str) -> set[str]:
    if lang == "en":
        return {KIND_OF_EN[name] for name in re.findall(rf"\b({NAMES_EN})\b", answer.lower())}
    return {KIND_OF_ZH[name] for name in re.findall(NAMES_ZH, answer)}


def ways_in(answer: str, lang: str) -> set[str]:
    patterns = WAYS_EN if lang == "en" else WAYS_ZH
    return {way for way, pattern in patterns.items() if re.search(pattern, answer)}


def groups_in(answer: str, lang: str) -> set[tuple[str, str, int]]:
    """{(kind, colour, count)} of a description."""
    if lang == "en":
        found = re.findall(rf"(\w+) ({COLOUR_NAMES_EN}) ({NAMES_EN})\b", answer.lower())
        return {(KIND_OF_EN[name], colour, number(many)) for many, colour, name in found}
    found = re.findall(rf"(\d+|[一二两三四五六七八九])\D({COLOUR_NAMES_ZH})的({NAMES_ZH})", answer)
    return {(KIND_OF_ZH[name], COLOUR_OF_ZH[colour], number(many)) for many, colour, name in found}
