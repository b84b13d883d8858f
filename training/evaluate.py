"""Asks a running server about fresh demo scenes and counts the right answers (``make eval``).

Standard library, numpy, PIL and PyAV only. Scenes come from seeds that training never uses. The
``grey`` lines are the control: the same questions with the picture replaced by grey, where a model
that sees must fall to chance. An answer is right when it is right word for word. Prints a line per
ability and language; the last line is one JSON object, ability -> accuracy. ``offline.py`` runs the
same cases on a checkpoint without a server.
"""

import argparse
import base64
import json
import os
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from PIL import Image

from training.contents import draw_size
from training.offtopic import ABOUT, HELD_OUT, cut
from training.phrases import COUNT_EN, COUNT_ZH
from training.scenes import KIND_NAMES, Clip, Scene, draw_frame, draw_scene, make_clip, make_scene
from training.signs import Sign, draw_sign, make_row, make_word, sign_size
from training.talk import LANGS, SCENE_ABILITIES, Turn, choose, count_answer
from training.tell import CLIP_ABILITIES, PAIR_ABILITIES, ROW_ABILITIES, WORD_ABILITIES, Pair
from training.words import NOUNS_ZH, noun

Rng = np.random.Generator
Media = tuple[bytes, str]  # a file and its MIME type
FIRST_SEED = 1_000_000
SYSTEM = "You are a helpful assistant."
WORDS = cut(
    "STOP|EXIT|OPEN|SHOP|TAXI|HELLO|WATER|MUSIC|PARK|BUS|ZOO|CAFE|HOTEL|BANK|MILK|TEA|LEMON|TRAIN"
    "|QUIET|JUMP|BOX|KIWI|FROG|VIDEO|GREEN|NORTH"
)
TURNS = 3  # questions in a conversation


@dataclass(frozen=True)
class Case:
    """One question to the server and how to judge the answer."""

    ability: str
    lang: str
    question: str
    wanted: str
    media: tuple[Media, ...] = ()
    before: tuple[Turn, ...] = ()  # earlier questions and answers about the same media
    first: bool = True  # the media stand before the question
    system: bool = False

    def right(self, answer: str) -> bool:
        return answer == self.wanted


Answer = Callable[[Case], str]


def picture_file(rng: Rng, picture: Image.Image) -> Media:
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
    return make_scene(rng, counts, *draw_size(rng, 110, 330, 2.5), fresh=True)


def scene_for(rng: Rng, ability: str) -> tuple[Scene, str]:
    """A scene fit for the ability, and the kind that a count asks for."""
    counts = [int(n) for n in rng.integers(1, 5, rng.integers(1, 4))]
    if ability == "count_five_to_nine":
        counts = [int(rng.integers(5, 10)), *counts[1:2]]
    if ability in ("where", "beside"):
        counts = [1] * int(rng.integers(2, 4))
    scene = fresh_scene(rng, counts)
    kinds = [kind for kind, _, _ in scene.groups()]
    if ability == "count_none":
        kinds = [kind for kind in KIND_NAMES if kind not in kinds]
    if ability == "count_five_to_nine":
        return scene, scene.things[0].kind
    return scene, str(rng.choice(kinds))


def picture_turns(rng: Rng, ability: str, lang: str) -> tuple[Scene, list[Turn]]:
    """A scene and questions about it."""
    while True:
        scene, kind = scene_for(rng, ability)
        if ability.startswith("count"):
            question = choose(rng, lang, COUNT_EN, COUNT_ZH)
            question = question.format(
                s=noun(kind, 2, "en"), m=NOUNS_ZH[kind][0], n=noun(kind, 2, "zh")
            )
            return scene, [(question, count_answer(kind, scene.count(kind), lang))]
        names = ["present", "agree"] if ability == "yes_no" else [ability]
        if ability == "turns":
            names = [str(name) for name in rng.choice(list(SCENE_ABILITIES), TURNS)]
        asked = [SCENE_ABILITIES[name][0](scene, rng, lang) for name in names]
        if ability == "yes_no":
            asked = asked[int(rng.integers(2)) :][:1]
        if all(asked):
            return scene, [turns[rng.integers(len(turns))] for turns in asked]


def picture_case(rng: Rng, ability: str, lang: str) -> Case:
    """A case about one scene; ``grey_`` abilities show grey instead."""
    grey, plain = ability.startswith("grey_"), ability.removeprefix("grey_")
    scene, turns = picture_turns(rng, plain, lang)
    drawn = draw_scene(scene)
    picture = Image.new("RGB", drawn.size, (128, 128, 128)) if grey else drawn
    return ready(rng, ability, lang, turns, (picture_file(rng, picture),))


def ready(rng: Rng, ability: str, lang: str, turns: list[Turn], media: tuple[Media, ...]) -> Case:
    """The case that asks the last of these questions."""
    first, system = bool(rng.random() < 0.6), bool(rng.random() < 0.5)
    return Case(ability, lang, *turns[-1], media, tuple(turns[:-1]), first, system)


def sign_case(rng: Rng, ability: str, lang: str) -> Case:
    """A row with a boxed place, a word or a number."""
    sign: Sign
    if ability == "box":
        length = int(rng.integers(3, 7))
        sign = make_row(rng, *sign_size(rng, length), length)
        turns = ROW_ABILITIES["box"][0](sign, rng, lang)
    else:
        text = str(rng.choice(WORDS))
        if ability == "number":
            text = "".join(str(n) for n in rng.integers(0, 10, rng.integers(2, 6)))
        sign = make_word(rng, *sign_size(rng, len(text)), text)
        turns = WORD_ABILITIES["read"][0](sign, rng, lang)
    return ready(rng, ability, lang, turns, (picture_file(rng, draw_sign(sign)),))


def clip_case(rng: Rng, ability: str, lang: str) -> Case:
    """A case about one clip in which one thing moves, or first one and then another."""
    width, height = (side // 2 * 2 for side in draw_size(rng, 100, 200, 1.7))
    phases = 2 if ability in ("clip_order", "clip_both") else 1
    clip = make_clip(rng, width, height, int(rng.integers(0, 3)), phases)
    turns = CLIP_ABILITIES[ability.replace("both", "describe")][0](clip, rng, lang)
    turn = turns[0] if ability == "clip_mover" else turns[rng.integers(len(turns))]
    return ready(rng, ability, lang, [turn], ((clip_file(clip), "video/mp4"),))


def pair_case(rng: Rng, ability: str, lang: str) -> Case:
    """Two pictures compared."""
    one = fresh_scene(rng, [int(n) for n in rng.integers(1, 7, rng.integers(1, 3))])
    kinds = tuple(kind for kind, _, _ in one.groups())
    size = draw_size(rng, 110, 330)
    other = make_scene(rng, [int(n) for n in rng.integers(1, 7, len(kinds))], *size, kinds, True)
    turns = PAIR_ABILITIES["more"][0](Pair((one, other)), rng, lang)
    media = tuple(picture_file(rng, draw_scene(scene)) for scene in (one, other))
    return ready(rng, ability, lang, turns, media)


def about_case(rng: Rng, ability: str, lang: str) -> Case:
    """Something that the model cannot do, from a list that training never sees; half of the time
    with a picture."""
    media: tuple[Media, ...] = ()
    if rng.random() < 0.5:
        media = (picture_file(rng, draw_scene(fresh_scene(rng, [int(rng.integers(1, 5))]))),)
    question = str(rng.choice(HELD_OUT[lang]))
    return ready(rng, ability, lang, [(question, ABOUT[lang])], media)


CASES: dict[str, Callable[[Rng, str, str], Case]] = {
    "count_to_four": picture_case,
    "count_five_to_nine": picture_case,
    "count_none": picture_case,
    "colour": picture_case,
    "where": picture_case,
    "beside": picture_case,
    "yes_no": picture_case,
    "describe": picture_case,
    "turns": picture_case,
    "box": sign_case,
    "word": sign_case,
    "number": sign_case,
    "more": pair_case,
    "clip_describe": clip_case,
    "clip_both": clip_case,
    "clip_mover": clip_case,
    "clip_way": clip_case,
    "clip_order": clip_case,
    "about": about_case,
    "grey_count_to_four": picture_case,
    "grey_colour": picture_case,
}


def draw_case(seed: int, ability: str, k: int) -> Case:
    """Case ``k`` of an ability, the even ones in English."""
    rng = np.random.default_rng([FIRST_SEED + seed, list(CASES).index(ability), k])
    return CASES[ability](rng, ability, LANGS[k % 2])


def judge(answer: Answer, options: argparse.Namespace, threads: int) -> dict[str, float]:
    """Asks everything, prints a line per ability and language, returns the accuracies."""
    score: dict[str, list[bool]] = {}

    def draw_and_ask(ability: str, k: int) -> None:
        asked = draw_case(options.seed, ability, k)
        text = answer(asked)
        good = asked.right(text)
        score.setdefault(f"{ability}/{asked.lang}", []).append(good)
        score.setdefault(ability, []).append(good)
        if options.show and not good and not ability.startswith("grey_"):
            print(f"wrong {ability}/{asked.lang}: {asked.question!r} -> {text!r}")

    with ThreadPoolExecutor(threads) as pool:
        for ability in options.only.split(",") if options.only else CASES:
            list(pool.map(draw_and_ask, [ability] * options.n, range(options.n)))
    for name, hits in sorted(score.items()):
        if "/" in name:
            print(f"{name:24} {sum(hits):4} of {len(hits):4}  {100 * sum(hits) / len(hits):5.1f} %")
    return {name: round(sum(hits) / len(hits), 4) for name, hits in sorted(score.items())}


def messages(case: Case, part: Callable[[Media], dict[str, object]]) -> list[dict[str, object]]:
    """The chat; ``part`` makes of a file what stands in the content."""
    chat: list[dict[str, object]] = [{"role": "system", "content": SYSTEM}] if case.system else []
    shown = [part(media) for media in case.media]
    for question, answer in [*case.before, (case.question, "")]:
        text: dict[str, object] = {"type": "text", "text": question}
        chat.append({"role": "user", "content": [*shown, text] if case.first else [text, *shown]})
        chat += [{"role": "assistant", "content": answer}] if answer else []
        shown = []
    return chat


def url_part(media: Media) -> dict[str, object]:
    key = "video_url" if media[1].startswith("video") else "image_url"
    url = f"data:{media[1]};base64,{base64.b64encode(media[0]).decode()}"
    return {"type": key, key: {"url": url}}


def body(case: Case, model: str) -> dict[str, object]:
    """The request."""
    chat = messages(case, url_part)
    return {"model": model, "messages": chat, "temperature": 0, "max_tokens": 100}


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
    parser.add_argument("--only", default="", help="abilities, with commas between (all)")
    parser.add_argument("--show", action="store_true", help="print the wrong answers")
    return parser


def main() -> None:
    parser = arguments()
    parser.add_argument("--url", default=os.environ.get("URL") or "http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("API_KEY") or "")
    options = parser.parse_args()
    answer = server(options.url, options.api_key)
    print(json.dumps(judge(answer, options, options.threads)))


if __name__ == "__main__":
    main()
