"""Many at once, some of whom leave: everybody gets what they would get alone, token for token.

Real HTTP, media and engine, a tiny model in float32. `PROMPTS=64` and `ABORTS=1000` are the larger
figures.
"""

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import httpx
import pytest

from fakes import KEY
from media_samples import clip
from media_samples import data_url as url_of
from test_leaving import leave, request_bytes
from tiny_server import PATIENCE, TinyServer, ask_about, before, data_url, picture, tiny_server

PROMPTS = int(os.environ.get("PROMPTS", "8"))  # an eighth clips, three pictures, the rest text
ABORTS = int(os.environ.get("ABORTS", "60"))
SIZES = (2, 4, 8, 16) if PROMPTS > 8 else (2, 8)  # of batches
TOKENS = 6
PASSING = 10**6  # the seed of those who only come and go
KEYS = tuple(f"sk-test-key-{number}" for number in range(1 + len(SIZES)))
Ids = dict[int, list[int]]  # of answers, by the number of the question


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    folder = tmp_path_factory.mktemp("tiny")
    keys = (KEY, *KEYS)
    with tiny_server(folder, keys, num_blocks=2000, max_tokens=256, max_num_seqs=24) as tiny:
        yield tiny


def question(number: int, **fields: object) -> dict[str, Any]:
    """Each is another one; its seed, which greedy answers do without, tells which."""
    text = f"Question {number}? " * (1 + number % 5)
    fields = {"max_tokens": TOKENS, "seed": number, **fields}
    if number % 8 == 0:
        url = {"url": url_of(clip(frames=8 + number // 4))}
        part = {"type": "video_url", "video_url": url, "max_pixels": 64 * 64}
        content = [part, {"type": "text", "text": text}]
        return {"messages": [{"role": "user", "content": content}], "temperature": 0, **fields}
    return ask_about(data_url(picture(number)) if number % 8 < 4 else None, text, **fields)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


class Leavers:
    """Clients who go away anywhere, drawn by a seed."""

    def __init__(self, tiny: TinyServer, seed: int) -> None:
        self._tiny = tiny
        self._rng = random.Random(seed)

    def come_and_go(self) -> None:
        rng = self._rng
        stream, longest = rng.random() < 0.5, rng.choice((1, TOKENS, 100))
        asked = question(rng.randrange(64), stream=stream, seed=PASSING, max_tokens=longest)
        sent = request_bytes(asked)
        if rng.random() < 0.2:
            sent = sent[: rng.randrange(len(sent))]
        with self._tiny.server.connect() as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(sent)
            if stream and sent.endswith(b"}") and rng.random() < 0.5:
                connection.recv(rng.randrange(1, 3000))
            with suppress(OSError):
                leave(connection, reset=rng.random() < 0.5)


@contextmanager
def passing(tiny: TinyServer) -> Iterator[None]:
    """Others join and leave all the time."""
    over = threading.Event()

    def pass_by(seed: int) -> None:
        leavers = Leavers(tiny, seed)
        while not over.is_set():
            leavers.come_and_go()

    with ThreadPoolExecutor(2) as pool:
        coming = [pool.submit(pass_by, seed) for seed in range(2)]
        try:
            yield
        finally:
            over.set()
        for each in coming:
            each.result()


def answered(tiny: TinyServer, since: int) -> Ids:
    """The ids of all answers but those of the passing ones."""
    ended = (each for each in tiny.sequences[since:] if each.params.seed != PASSING)
    return {each.params.seed or 0: list(each.output_token_ids) for each in ended}


def ask_in_batches(tiny: TinyServer, size: int, key: str) -> Ids:
    """All questions, shuffled, so many at a time; no step before a batch is there."""
    numbers = random.Random(size).sample(range(PROMPTS), PROMPTS)
    since = len(tiny.sequences)
    for start in range(0, PROMPTS, size):
        batch = [question(number) for number in numbers[start : start + size]]
        with pytest.MonkeyPatch.context() as patch:
            wanted = tiny.added.count + len(batch)
            before(patch, tiny.runner, "launch", lambda step, n=wanted: tiny.added.wait_for(n))
            for answer in tiny.post_all(batch, key):
                text_of(answer)
    return answered(tiny, since)


def test_answers_do_not_depend_on_the_batch_nor_on_who_joins_and_leaves(tiny: TinyServer) -> None:
    for number in range(PROMPTS):
        text_of(tiny.post(question(number), KEYS[0]))
    alone = answered(tiny, 0)
    assert len({tuple(each) for each in alone.values()}) > PROMPTS * 3 // 4
    with passing(tiny):
        for size, key in zip(SIZES, KEYS[1:], strict=True):  # nothing is cached for a new key
            assert ask_in_batches(tiny, size, key) == alone
    assert max(len(chunks) for chunks, _ in tiny.runner.steps) >= max(SIZES)
    tiny.check_idle()


def test_fifty_requests_under_one_id_get_their_own_answers(tiny: TinyServer) -> None:
    def ask(number: int) -> str:
        answer = httpx.post(
            f"{tiny.server.url}/v1/chat/completions",
            json=question(number % 10),
            headers={"x-api-key": KEY, "x-request-id": "same"},
            timeout=PATIENCE,
            trust_env=False,
        )
        assert answer.headers["x-request-id"] == "same"
        return text_of(answer)

    alone = [text_of(tiny.post(question(number))) for number in range(10)]
    assert len(set(alone)) > 7
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(50))) == alone * 5
    tiny.check_idle()


def test_whoever_leaves_at_random_changes_nobodys_answer(tiny: TinyServer) -> None:
    alone = [text_of(tiny.post(question(number))) for number in range(8)]
    left = count()

    def leave_all(seed: int) -> None:
        leavers = Leavers(tiny, 100 + seed)
        while next(left) < ABORTS:
            leavers.come_and_go()

    with ThreadPoolExecutor(12) as pool:
        leaving = [pool.submit(leave_all, seed) for seed in range(8)]
        while not all(each.done() for each in leaving):
            answers = pool.map(lambda number: text_of(tiny.post(question(number))), range(4))
            assert list(answers) == alone[:4]
        for each in leaving:
            each.result()
    assert [text_of(tiny.post(question(number))) for number in range(8)] == alone
    tiny.check_idle()
