"""What may be under way at once: requests by number, and their pixels, which wait in line."""

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import PATIENCE, Rig, assert_error, request_bytes, running
from litevl.api import admission
from litevl.api.admission import Admission
from litevl.config import Config
from litevl.errors import QueueFullError, UnavailableError
from litevl.media import loader
from litevl.media.budgets import ByteBudget, BytesInFlight
from litevl.media.loader import MediaLoader
from media_samples import FakePlanner, png, reference

ROOM = 100


@given(
    st.lists(st.tuples(st.integers(0, 150), st.integers(0, 4)), max_size=8),
    st.lists(st.integers(0, 7), max_size=4),
)
def test_whatever_becomes_of_requests_all_have_room_and_all_comes_back(
    some: list[tuple[int, int]], cancelled: list[int]
) -> None:
    asyncio.run(play(some, cancelled))


async def play(some: list[tuple[int, int]], cancelled: list[int]) -> None:
    admitted, begun = Admission(len(some) or 1, ROOM), []

    async def request(index: int, pixels: int, turns: int) -> None:
        scope: dict[str, Any] = {}
        with admitted.enter(scope):
            await admitted.hold_pixels(scope, pixels)
            begun.append(index)
            for _ in range(turns):
                assert admitted.num_pixels <= ROOM
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(request(index, *each)) for index, each in enumerate(some)]
    for index in cancelled:
        await asyncio.sleep(0)
        if tasks:
            tasks[index % len(tasks)].cancel()
    async with asyncio.timeout(PATIENCE):
        for each in tasks:
            with suppress(asyncio.CancelledError):
                await each
    assert len(begun) == len(some) or cancelled
    assert (admitted.num_requests, admitted.num_pixels) == (0, 0)


@pytest.mark.anyio
async def test_a_request_without_pictures_waits_for_no_picture() -> None:
    admitted = Admission(3, ROOM)
    scopes: list[dict[str, Any]] = [{}, {}, {}]
    first, large, text = scopes
    with admitted.enter(first), admitted.enter(large), admitted.enter(text):
        await admitted.hold_pixels(first, 60)
        waiting = asyncio.create_task(admitted.hold_pixels(large, 80))
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            await admitted.hold_pixels(text, 0)
        assert not waiting.done()
        waiting.cancel()


@pytest.mark.anyio
async def test_who_finds_no_room_in_time_is_told_so_and_lets_the_next_one_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "WAIT_S", 0.05)
    admitted = Admission(3, ROOM)
    scopes: list[dict[str, Any]] = [{}, {}, {}]
    first, large, small = scopes
    with admitted.enter(first), admitted.enter(large), admitted.enter(small):
        await admitted.hold_pixels(first, 60)
        waiting = asyncio.create_task(admitted.hold_pixels(large, 80))
        await asyncio.sleep(0)
        monkeypatch.setattr(admission, "WAIT_S", PATIENCE)
        # It would fit now, but waits its turn.
        await admitted.hold_pixels(small, 40)
        with pytest.raises(UnavailableError):
            await waiting
        with pytest.raises(QueueFullError), admitted.enter({}):
            pass


# Through the front door ------------------------------------------------------------------------


@contextmanager
def full() -> Iterator[Rig]:
    """A server for two requests, which are being prepared."""
    with running(max_num_seqs=1, max_num_queued_reqs=1) as rig:
        rig.preprocessor.may_go.clear()
        with rig.connect() as first, rig.connect() as second:
            for each in (first, second):
                each.sendall(request_bytes())
            assert rig.preprocessor.entered.wait(PATIENCE)
            while rig.service.admission.num_requests < 2:
                assert rig.client.get("/health").status_code == 200
            yield rig
            rig.preprocessor.may_go.set()
            for each in (first, second):
                assert each.recv(13) == b"HTTP/1.1 200 "


@pytest.mark.parametrize(
    "path", ["chat/completions", "completions", "chat/completions/input_tokens", "tokenize"]
)
def test_requests_in_preparation_are_bounded_like_those_that_wait(path: str) -> None:
    with full() as rig:
        asked = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
        answer = rig.client.post(f"/v1/{path}", json=asked)
        assert_error(answer, 429, "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "2"
        for each in ("/health", "/health/live"):
            assert rig.client.get(each).status_code == 200


def test_when_all_is_answered_nothing_is_under_way() -> None:
    with running() as rig:
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
        for stream in (False, True):
            message = {"role": "user", "content": [picture]}
            assert rig.chat(messages=[message], stream=stream).status_code == 200
        assert rig.chat(messages=[]).status_code == 400
        while rig.service.admission.num_requests:
            assert rig.client.get("/health").status_code == 200
        assert rig.service.admission.num_pixels == 0


def test_pixels_are_held_until_the_answer_is_out() -> None:
    with running() as rig, rig.connect() as connection:
        rig.engine.hold()
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
        connection.sendall(request_bytes(messages=[{"role": "user", "content": [picture] * 3}]))
        rig.engine.wait_until(lambda engine: engine.num_running == 1)
        assert rig.service.admission.num_pixels == 3 * 8 * 8
        rig.engine.release()
        assert connection.recv(13) == b"HTTP/1.1 200 "


# Files -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_files_of_all_requests_together_are_bounded_and_given_back() -> None:
    in_flight = BytesInFlight(100, "files")
    first, second = ByteBudget(in_flight), ByteBudget(in_flight)
    first.spend(60, "image", "p")
    with pytest.raises(UnavailableError):
        second.spend(41, "video", "p")
    second.spend(40, "video", "p")
    first.close()
    first.close()
    second.spend(60, "video", "p")
    second.close()
    assert in_flight.used == 0


@pytest.mark.anyio
async def test_what_a_request_has_brought_counts_until_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "MAX_BYTES_IN_FLIGHT", len(png()) * 3)
    refs = [reference("data:image/png;base64," + base64.b64encode(png()).decode())] * 2
    media = MediaLoader(FakePlanner(lambda probe: (0,)), Config())
    for _ in range(3):
        assert len(await media.load(refs)) == len(await media.measure(refs)) == 2
    with pytest.raises(UnavailableError):
        await media.load(refs + refs)
    assert await media.load(refs)
    await media.close()
