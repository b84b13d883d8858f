"""The clients of a soak: good ones, and all the others that a public address meets.

`Clients` draws one by one from a seeded mix and notes what became of each. Used by
`__main__.py`; knows the API from outside, and nothing of the server's insides.
"""

import asyncio
import base64
import io
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from soak.wire import Answer, ask, connect, leave, request

DEMO = Path(__file__).resolve().parents[2] / "litevl" / "demo"
MIX = {"good": 60, "abort": 12, "bad": 12, "slow": 6, "over": 5, "dead": 5}  # percent
NUM_PICTURES = 24  # more than the caches hold
QUEUE_CODES = ("rate_limit_exceeded", "server_is_overloaded")

Body = dict[str, object]


def data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image(url: str) -> Body:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str) -> Body:
    return {"type": "video_url", "video_url": {"url": url}}


def chat(*parts: Body | str, **fields: object) -> Body:
    content = [{"type": "text", "text": each} if isinstance(each, str) else each for each in parts]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **fields}


def picture(seed: int, file: str = "PNG") -> bytes:
    """A few coloured squares, each seed others."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((200, 150), Image.Resampling.NEAREST).save(stream, file)
    return stream.getvalue()


def good_bodies(sink: str) -> dict[str, Body]:
    """What is asked again and again; greedy, so that every answer is known."""
    sample = data_url((DEMO / "sample.jpg").read_bytes(), "image/jpeg")
    clip = data_url((DEMO / "sample.mp4").read_bytes(), "video/mp4")
    bodies = {
        "text": chat("Hello! Who are you?", max_tokens=24),
        "long": chat("Tell me about circles. " * 20, max_tokens=40),
        "sample": chat(image(sample), "What is in the picture?", max_tokens=32),
        "clip": chat(video(clip), "What moves?", max_tokens=24),
        "both": chat(image(sample), video(clip), "What do you see?", max_tokens=24),
        "url": chat(image(f"{sink}/picture.png"), "Which colours?", max_tokens=24),
        "several": chat("How many circles are there?", image(sample), max_tokens=16, n=3),
        "form": chat(
            "Which colour?",
            image(sample),
            max_tokens=16,
            structured_outputs={"choice": ["red", "green", "blue"]},
        ),
        "scores": chat("Hi", max_tokens=8, logprobs=True, top_logprobs=3),
    }
    for seed in range(NUM_PICTURES):
        url = data_url(picture(seed, "JPEG" if seed % 2 else "PNG"), "image/png")
        bodies[f"picture {seed}"] = chat(image(url), "Which colours?", max_tokens=20)
    return bodies


def bad_requests() -> list[tuple[bytes, int]]:
    """What is refused, and how."""
    sample = (DEMO / "sample.jpg").read_bytes()
    clip = (DEMO / "sample.mp4").read_bytes()
    torn = data_url(sample[:1000], "image/jpeg")
    bent = data_url(sample[:300] + bytes(400) + sample[700:], "image/jpeg")
    cut = data_url(clip[:4000], "video/mp4")
    text = data_url(b"<html></html>", "image/png")
    wrong: list[Body] = [
        {},
        {"messages": []},
        {"messages": "hi"},
        chat("hi", temperature=9),
        chat("hi", max_tokens=-1),
        chat("hi", n="three"),
        chat("hi", response_format={"type": "json_schema", "json_schema": {"name": "x"}}),
        chat({"type": "audio", "audio": "x"}),
        chat(image("data:image/png;base64,@@@@")),
        chat(image("ftp://example.com/a.png")),
        chat(image("http://10.0.0.1/a.png")),
        chat(image(torn), "?"),
        chat(video(cut), "?"),
        chat(image(text), "?"),
        chat("hi", structured_outputs={"json": {"type": "no such type"}}),
    ]
    found = [(request(each), 400) for each in wrong]
    found += [(request(chat(image(bent), "?", max_tokens=1)), 0)]  # 0: 200 or 400
    found += [(request(b'{"messages": [}'), 400), (request(b"\xff\xfe"), 400)]
    found += [(request(chat("hi"), key="sk-wrong"), 401), (request(chat("hi", model="x")), 404)]
    found += [(request({}, path="/v1/nothing"), 404), (request({}, path="/v1/models"), 405)]
    return found


def over_limit_requests() -> list[tuple[bytes, int]]:
    """What is more than the server takes."""
    small = image(data_url(picture(0), "image/png"))
    clip = video(data_url((DEMO / "sample.mp4").read_bytes(), "video/mp4"))
    huge = io.BytesIO()
    Image.new("1", (9000, 9000)).save(huge, "PNG")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: soak\r\n"
    return [
        (request(chat("word " * 4000)), 400),
        (request(chat(*[small] * 65, "?")), 400),
        (request(chat(clip, clip, clip, "?")), 400),
        (request(chat(image(data_url(huge.getvalue(), "image/png")), "?")), 400),
        (request(chat("hi", n=9)), 400),
        (request(chat("hi", stop=["x"] * 17)), 400),
        (head + b"content-length: 200000000\r\n\r\n{", 401),
        (head + b"x-api-key: sk-litevl-soak-key\r\ncontent-length: 200000000\r\n\r\n{", 413),
        (head + b"x-long: " + b"a" * 20_000 + b"\r\n\r\n", 431),
    ]


@dataclass(frozen=True, slots=True)
class Said:
    """What a good answer holds, streamed or whole."""

    texts: tuple[str, ...]
    reasons: tuple[object, ...]
    tokens: object


def read(answer: Answer, *, stream: bool) -> Said:
    """Raises ValueError or KeyError where the answer has not the shape it should have."""
    if not stream:
        value = json.loads(answer.body)
        choices = value["choices"]
        texts = tuple(each["message"]["content"] for each in choices)
        reasons = tuple(each["finish_reason"] for each in choices)
        return Said(texts, reasons, value["usage"]["completion_tokens"])
    *events, last, _ = answer.body.decode().split("\n\n")
    if last != "data: [DONE]":
        raise ValueError("the stream broke off")
    texts_of: Counter[int] = Counter()
    parts: dict[int, str] = {}
    ends: dict[int, object] = {}
    tokens = None
    for value in (json.loads(event.removeprefix("data: ")) for event in events):
        tokens = value["usage"]["completion_tokens"] if value.get("usage") else tokens
        for choice in value["choices"]:
            index = choice["index"]
            texts_of[index] += 1
            parts[index] = parts.get(index, "") + choice["delta"].get("content", "")
            if choice["finish_reason"]:
                ends[index] = choice["finish_reason"]
    order = sorted(parts)
    return Said(tuple(parts[i] for i in order), tuple(ends[i] for i in order), tokens)


@dataclass
class Clients:
    """Sends what the mix says, and counts what came of it."""

    port: int
    sink: str  # http://127.0.0.1:PORT: serves a picture, hangs or breaks off
    closed: str  # the same where nobody listens
    rng: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # what should not have been, at most a hundred
    known: dict[str, Said] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.good = good_bodies(self.sink)
        self.bad = bad_requests()
        self.over = over_limit_requests()
        self._kinds: dict[str, Callable[[], Awaitable[str]]] = {
            "good": self._good,
            "abort": self._abort,
            "bad": partial(self._refused, self.bad),
            "slow": self._slow,
            "over": partial(self._refused, self.over),
            "dead": self._dead,
        }

    async def learn(self) -> None:
        """Ask every good question alone: these answers are the right ones."""
        for name, body in self.good.items():
            self.known[name] = read(await ask(self.port, request(body)), stream=False)

    def draw(self) -> str:
        return self.rng.choices(list(MIX), list(MIX.values()))[0]

    async def one(self, kind: str) -> None:
        """One client of this kind, from its first byte to its last."""
        try:
            outcome = await self._kinds[kind]()
        except (OSError, TimeoutError, ValueError, KeyError) as error:
            outcome = f"failed: {type(error).__name__}"
            self._complain(f"{kind}: {error!r}")
        self.outcomes[f"{kind}: {outcome}"] += 1

    def _complain(self, what: str) -> None:
        if len(self.wrong) < 100:
            self.wrong.append(what[:300])

    # Kinds ---------------------------------------------------------------------------------------

    async def _good(self) -> str:
        name = self.rng.choice(list(self.good))
        stream = self.rng.random() < 0.5
        fields: Body = {"stream_options": {"include_usage": True}} if stream else {}
        answer = await ask(self.port, request({**self.good[name], "stream": stream, **fields}))
        if answer.status in (429, 503) and answer.code in QUEUE_CODES:
            return f"turned away {answer.status}"
        if answer.status != 200:
            self._complain(f"good {name}: {answer.status} {answer.body[:200]!r}")
            return f"failed: {answer.status}"
        said = read(answer, stream=stream)
        if said != self.known[name]:
            self._complain(f"good {name}: {said} instead of {self.known[name]}")
            return "wrong answer"
        return "right"

    async def _refused(self, requests: list[tuple[bytes, int]]) -> str:
        number = self.rng.randrange(len(requests))
        sent, status = requests[number]
        return self._check_status(number, await ask(self.port, sent), status)

    async def _dead(self) -> str:
        number = self.rng.randrange(4)
        host = (
            self.closed if number == 0 else f"{self.sink}/{('hang', 'break', 'gone')[number - 1]}"
        )
        answer = await ask(self.port, request(chat(image(f"{host}/a.png"), "?")))
        return self._check_status(number, answer, 400)

    def _check_status(self, number: int, answer: Answer, status: int) -> str:
        allowed = (200, 400) if status == 0 else (status,)
        if answer.status in allowed:
            return "refused"
        if answer.status in (429, 503) and answer.code in QUEUE_CODES:
            return f"turned away {answer.status}"
        self._complain(f"number {number}: {answer.status} instead of {status}")
        return f"failed: {answer.status} instead of {status}"

    async def _abort(self) -> str:
        """Leave at a place drawn by chance: in the head, the body, before or within the answer."""
        rng = self.rng
        url = data_url(picture(rng.randrange(1000, 1000 + NUM_PICTURES)), "image/png")
        nonce = f"Which colours? {rng.random()}"
        body = chat(image(url), nonce, max_tokens=60, stream=rng.random() < 0.7, ignore_eos=True)
        if rng.random() < 0.2:
            body["messages"] = chat(image(f"{self.sink}/hang/a.png"), nonce)["messages"]
        sent = request(body)
        place = rng.choice(["nothing", "head", "body", "sent", "soon", "first", "some"])
        reader, writer = await connect(self.port)
        try:
            writer.write(sent[: {"nothing": 0, "head": 30, "body": len(sent) // 2}.get(place)])
            await writer.drain()
            if place == "soon":
                await asyncio.sleep(rng.random() * 0.3)
            if place in ("first", "some"):
                async with asyncio.timeout(10):
                    await reader.read(100 if place == "first" else rng.randrange(500, 5000))
        except TimeoutError:
            pass
        finally:
            leave(writer, reset=rng.random() < 0.5)
        return place

    async def _slow(self) -> str:
        """Take an answer a few bytes at a time, or not at all; leave in the end."""
        body = chat("Count.", max_tokens=80, stream=True, ignore_eos=True, logprobs=True)
        body |= {"top_logprobs": 20}
        reader, writer = await connect(self.port, small=True)
        try:
            writer.write(request(body))
            if self.rng.random() < 0.3:
                await asyncio.sleep(self.rng.uniform(5, 70))
                return "never read"
            for _ in range(self.rng.randrange(20, 100)):
                await asyncio.sleep(0.2)
                if not await reader.read(64):
                    break
            return "slow"
        finally:
            leave(writer, reset=self.rng.random() < 0.5)
