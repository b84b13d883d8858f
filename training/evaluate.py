"""Asks a running server about fresh demo scenes and counts the right answers (``make eval``).

Standard library, numpy, PIL and PyAV only. Scenes come from seeds that training never uses. The
``grey`` lines are the control: the same questions with the picture replaced by grey, where a model
that sees must fall to chance. Prints a line per ability and language; the last line is one JSON
object, ability -> accuracy. ``offline.py`` runs the same cases on a checkpoint without a server.
"""

import argparse
import base64
import json
import os
import urllib.request
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from PIL import Image

from training.answers import colours_in, count_in, groups_in, kinds_in, ways_in
from training.offtopic import ABOUT
from training.scenes import KIND_NAMES, Clip, Scene, draw_frame, draw_scene, make_clip, make_scene
from training.talk import (
    CLIP_EN,
    CLIP_ZH,
    COLOUR_EN,
    COLOUR_ZH,
    COUNT_EN,
    COUNT_ZH,
    DESCRIBE_EN,
    DESCRIBE_ZH,
    LANGS,
    MOVES_EN,
    MOVES_ZH,
    WAY_EN,
    WAY_ZH,
    choose,
    off_topic,
)
from training.words import NOUNS_ZH, noun

Rng = np.random.Generator
FIRST_SEED = 1_000_000
SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True)
class Case:
    """One question to the server and how to judge the answer."""

    ability: str
    lang: str
    question: str
    media: bytes
    mime: str
    first: bool
    system: bool
    right: Callable[[str], bool]


Answer = Callable[[Case], str]


def picture_file(rng: Rng, picture: Image.Image) -> tuple[bytes, str]:
    file = BytesIO()
    kind = "PNG" if rng.random() < 0.5 else "JPEG"
    picture.save(file, kind, **({} if kind == "PNG" else {"quality": int(rng.integers(70, 96))}))
    return file.getvalue(), f"image/{kind.lower()}"


def clip_file(clip: Clip) -> bytes:
    """The clip as H.264 in MP4."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as box:
        stream = box.add_stream("libx264", rate=Fraction(clip.fps), options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = clip.scene.width, clip.scene.height, "yuv420p"
        for index in range(clip.frames):
            frame = av.VideoFrame.from_ndarray(np.array(draw_frame(clip, index)), "rgb24")
            for packet in stream.encode(frame):
                box.mux(packet)
        for packet in stream.encode():
            box.mux(packet)
    return file.getvalue()


def fresh_scene(rng: Rng, counts: list[int]) -> Scene:
    width, height = (int(n) for n in rng.integers(120, 300, 2))
    return make_scene(rng, counts, width, height)


def asked(rng: Rng, scene: Scene, kind: str, lang: str, colour: bool) -> str:
    """A count or colour question about ``kind``."""
    many = not colour or scene.count(kind) > 1
    words = {"s": noun(kind, 1 + many, "en"), "v": "are" if many else "is"}
    words |= {"m": NOUNS_ZH[kind][0], "n": NOUNS_ZH[kind][1]}
    pair = (COLOUR_EN, COLOUR_ZH) if colour else (COUNT_EN, COUNT_ZH)
    return choose(rng, lang, *pair).format(**words)


def picture_case(rng: Rng, ability: str, lang: str) -> Case:
    """A case about one picture; ``grey_`` abilities show grey instead."""
    grey, plain = ability.startswith("grey_"), ability.removeprefix("grey_")
    counts = [int(n) for n in rng.integers(1, 5, rng.integers(1, 4))]
    if plain == "count_five_to_nine":
        counts = [int(rng.integers(5, 10)), *counts[1:2]]
    scene = fresh_scene(rng, counts)
    groups = scene.groups()
    kind, shade, number = groups[rng.integers(len(groups))]
    if plain == "count_five_to_nine":
        kind, number = scene.things[0].kind, counts[0]
    if plain == "count_none":
        absent = [name for name in KIND_NAMES if not scene.count(name)]
        kind, number = str(rng.choice(absent)), 0
    right: Callable[[str], bool]
    if plain == "describe":
        question = choose(rng, lang, DESCRIBE_EN, DESCRIBE_ZH)
        right = lambda answer: groups_in(answer, lang) == set(groups)  # noqa: E731
    elif plain == "colour":
        question = asked(rng, scene, kind, lang, True)
        right = lambda answer: colours_in(answer, lang) == {shade}  # noqa: E731
    else:
        question = asked(rng, scene, kind, lang, False)
        right = lambda answer: count_in(answer, lang) == (kind, number)  # noqa: E731
    drawn = draw_scene(scene)
    picture = Image.new("RGB", drawn.size, (128, 128, 128)) if grey else drawn
    media, mime = picture_file(rng, picture)
    first, system = bool(rng.random() < 0.6), bool(rng.random() < 0.5)
    return Case(ability, lang, question, media, mime, first, system, right)


def clip_case(rng: Rng, ability: str, lang: str) -> Case:
    """A case about one clip in which one thing moves."""
    width, height = (int(n) * 2 for n in rng.integers(50, 90, 2))
    clip = make_clip(rng, width, height, int(rng.integers(0, 3)))
    kind, shade, way = clip.mover.kind, clip.mover.colour, clip.direction
    if ability == "clip_way":
        question = choose(rng, lang, WAY_EN, WAY_ZH).format(n=noun(kind, 1, lang))
    elif ability == "clip_mover":
        question = choose(rng, lang, MOVES_EN, MOVES_ZH)
    else:
        question = choose(rng, lang, CLIP_EN, CLIP_ZH)

    def right(answer: str) -> bool:
        moves = kinds_in(answer, lang) == {kind} and colours_in(answer, lang) == {shade}
        goes = ways_in(answer, lang) == {way}
        return goes if ability == "clip_way" else moves and (ability == "clip_mover" or goes)

    first, system = bool(rng.random() < 0.6), bool(rng.random() < 0.5)
    return Case(ability, lang, question, clip_file(clip), "video/mp4", first, system, right)


def about_case(rng: Rng, ability: str, lang: str) -> Case:
    """Something that the model cannot do; with a picture half of the time."""
    media, mime = b"", ""
    if rng.random() < 0.5:
        media, mime = picture_file(rng, draw_scene(fresh_scene(rng, [int(rng.integers(1, 5))])))
    question, _ = off_topic(rng, lang)
    system = bool(rng.random() < 0.5)
    return Case(ability, lang, question, media, mime, True, system, lambda a: a == ABOUT[lang])


CASES: dict[str, Callable[[Rng, str, str], Case]] = {
    "count_to_four": picture_case,
    "count_five_to_nine": picture_case,
    "count_none": picture_case,
    "colour": picture_case,
    "describe": picture_case,
    "clip_describe": clip_case,
    "clip_mover": clip_case,
    "clip_way": clip_case,
    "about": about_case,
    "grey_count_to_four": picture_case,
    "grey_colour": picture_case,
}


def cases(seed: int, count: int, only: Container[str] = CASES) -> Iterator[Case]:
    """``count`` cases an ability, half in each language (or one more in English)."""
    for row, (ability, make) in enumerate(CASES.items()):
        for k in range(count if ability in only else 0):
            rng = np.random.default_rng([FIRST_SEED + seed, row, k])
            yield make(rng, ability, LANGS[k % 2])


def judge(answer: Answer, seed: int, count: int, threads: int, show: bool) -> dict[str, float]:
    """Asks everything, prints a line per ability and language, returns the accuracies."""
    todo = list(cases(seed, count))
    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(answer, todo))
    score: dict[str, list[bool]] = {}
    for case, text in zip(todo, answers, strict=True):
        good = case.right(text)
        score.setdefault(f"{case.ability}/{case.lang}", []).append(good)
        score.setdefault(case.ability, []).append(good)
        if show and not good and not case.ability.startswith("grey_"):
            print(f"wrong {case.ability}/{case.lang}: {case.question!r} -> {text!r}")
    for name, hits in sorted(score.items()):
        if "/" in name:
            print(f"{name:24} {sum(hits):4} of {len(hits):4}  {100 * sum(hits) / len(hits):5.1f} %")
    return {name: round(sum(hits) / len(hits), 4) for name, hits in sorted(score.items())}


def body(case: Case, model: str) -> dict[str, object]:
    """The request: picture or clip as a data URL, before or after the question."""
    parts: list[dict[str, object]] = [{"type": "text", "text": case.question}]
    if case.media:
        key = "video_url" if case.mime.startswith("video") else "image_url"
        url = f"data:{case.mime};base64,{base64.b64encode(case.media).decode()}"
        parts.insert(0 if case.first else 1, {"type": key, key: {"url": url}})
    messages: list[dict[str, object]] = [{"role": "user", "content": parts}]
    if case.system:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 100}


def call(url: str, key: str, data: dict[str, object] | None = None) -> dict[str, object]:
    raw = json.dumps(data).encode() if data else None
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, raw, headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        answer: dict[str, object] = json.load(reply)
    return answer


def server(url: str, key: str) -> Answer:
    """A function that asks the server at ``url``."""
    root = url.rstrip("/").removesuffix("/v1")
    listed = call(f"{root}/v1/models", key)["data"]
    assert isinstance(listed, list)
    model = str(listed[0]["id"])

    def answer(case: Case) -> str:
        reply = call(f"{root}/v1/chat/completions", key, body(case, model))
        choices = reply["choices"]
        assert isinstance(choices, list)
        return str(choices[0]["message"]["content"]).strip()

    return answer


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or 1))
    parser.add_argument("--n", type=int, default=int(os.environ.get("N") or 40))
    parser.add_argument("--threads", type=int, default=4, help="requests at a time")
    parser.add_argument("--show", action="store_true", help="print the wrong answers")
    return parser


def main() -> None:
    parser = arguments()
    parser.add_argument("--url", default=os.environ.get("URL") or "http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("API_KEY") or "")
    options = parser.parse_args()
    answer = server(options.url, options.api_key)
    print(json.dumps(judge(answer, options.seed, options.n, options.threads, options.show)))


if __name__ == "__main__":
    main()
