"""Time to first token of a question about a picture: cold, picture cached, prefix cached.

`python -m benchmarks.ttft`. The whole way but HTTP: the base64 JPEG is decoded in a child process,
prepared by the checkpoint's processor and run by the engine in its thread, as `litevl serve` does
it. `picture` asks about a picture seen before behind words that are new: its pixels and features
are there, its keys are not. `prefix` asks something new about the same beginning: budget, 15 % of
cold.
"""

import asyncio
from base64 import b64encode
from dataclasses import asdict, dataclass
from io import BytesIO
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.program import add_checkpoint, finish, parser, table
from benchmarks.reference import folder_or_reference
from litevl.api.ports import Backend
from litevl.cli import load_backend
from litevl.config import Config
from litevl.sequence import (
    Conversation,
    MediaPart,
    MediaRef,
    Message,
    Prompt,
    SamplingParams,
    Sequence,
    StepOutput,
    TextPart,
)

BUDGET_RATIO = 0.15
MAX_MODEL_LEN = 2048
OPENING, OTHER_OPENING = "You look at pictures.", "A visitor has a question."
QUESTION, OTHER_QUESTION = "How many sheep are there?", "Which colours do you see?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Milliseconds until a request's first token, and where they went."""

    ttft_ms: float
    media_ms: float  # base64, decoding, resizing
    prepare_ms: float  # template, ids, patches, positions
    engine_ms: float  # encoding, prefill, sampling, delivery


class Client:
    """Asks one question at a time and waits for one token."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._count = 0
        backend.engine.start(self._deliver)

    async def ask(self, picture: str, opening: str, question: str) -> tuple[Times, Prompt]:
        began = perf_counter()
        ref = MediaRef(declared="image", url=picture, param="picture")
        media = await self._backend.media.load([ref])
        loaded = perf_counter()
        prepare = self._backend.preprocessor.prepare
        prompt = await asyncio.to_thread(prepare, _conversation(opening, question), media)
        prepared = perf_counter()
        await self._first_token(prompt)
        ended = perf_counter()
        times = Times(
            ttft_ms=(ended - began) * 1e3,
            media_ms=(loaded - began) * 1e3,
            prepare_ms=(prepared - loaded) * 1e3,
            engine_ms=(ended - prepared) * 1e3,
        )
        return times, prompt

    async def close(self) -> None:
        await asyncio.to_thread(self._backend.engine.stop)
        await self._backend.media.close()

    async def _first_token(self, prompt: Prompt) -> None:
        self._arrived.clear()
        self._count += 1
        params = SamplingParams(max_tokens=1, temperature=0.0)
        self._backend.engine.add(
            Sequence(request_id=str(self._count), prompt=prompt, params=params)
        )
        await self._arrived.wait()

    def _deliver(self, outputs: list[StepOutput]) -> None:
        if outputs and outputs[-1].error:
            raise outputs[-1].error
        self._loop.call_soon_threadsafe(self._arrived.set)


def _conversation(opening: str, question: str) -> Conversation:
    system = Message(role="system", parts=(TextPart(opening),))
    user = Message(role="user", parts=(MediaPart(0), TextPart(question)))
    return Conversation(messages=(system, user))


def picture(seed: int, size: tuple[int, int]) -> str:
    """A `data:` URL of a JPEG of coloured squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(squares).resize(size, Image.Resampling.NEAREST).save(buffer, "JPEG")
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"


async def measure(
    backend: Backend, size: tuple[int, int], repeats: int
) -> tuple[dict[str, list[Times]], Prompt]:
    """The three kinds in turns, each time about a picture that nobody has seen."""
    client = Client(backend)
    await client.ask(picture(0, size), OPENING, QUESTION)  # what only the first request ever pays
    found: dict[str, list[Times]] = {"cold": [], "picture": [], "prefix": []}
    for seed in range(1, repeats + 1):
        url = picture(seed, size)
        cold, prompt = await client.ask(url, OPENING, QUESTION)
        prefix, _ = await client.ask(url, OPENING, OTHER_QUESTION)
        cached, _ = await client.ask(url, OTHER_OPENING, QUESTION)
        for name, times in (("cold", cold), ("picture", cached), ("prefix", prefix)):
            found[name].append(times)
    await client.close()
    return found, prompt


def _medians(times: list[Times]) -> dict[str, float]:
    rows = [asdict(each) for each in times]
    return {name: median(row[name] for row in rows) for name in rows[0]}


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    add_checkpoint(made)
    args = made.parse_args(argv)
    torch.set_num_threads(args.threads)
    folder = folder_or_reference(args.checkpoint)
    config = Config(model=str(folder), device="cpu", dtype="float32", max_model_len=MAX_MODEL_LEN)
    backend, _ = load_backend(config)
    size, repeats = ((320, 240), 1) if args.quick else ((640, 480), 5)
    found, prompt = asyncio.run(measure(backend, size, repeats))
    kinds: dict[str, Any] = {name: _medians(times) for name, times in found.items()}
    table(("TTFT", *kinds["cold"]), [(name, *times.values()) for name, times in kinds.items()])
    figures = {
        "prefix_ratio": kinds["prefix"]["ttft_ms"] / kinds["cold"]["ttft_ms"],
        "picture_ratio": kinds["picture"]["ttft_ms"] / kinds["cold"]["ttft_ms"],
        "budget_ratio": BUDGET_RATIO,
        "prompt_tokens": len(prompt),
        "image_tokens": prompt.num_media_tokens("image"),
        **kinds,
    }
    finish("ttft", figures, args.threads)


if __name__ == "__main__":
    main()
