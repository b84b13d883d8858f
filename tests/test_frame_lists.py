"""Clips that come as pictures of their frames."""

import asyncio
from dataclasses import replace

import pytest

from litevl.api.parts import parse_part
from litevl.media import budgets, loader
from litevl.sequence import MediaOptions, MediaRef
from media_samples import FakePlanner, clip, data_url, png, reference
from test_media import Make, error_of, make

pytestmark = pytest.mark.anyio
__all__ = ["make"]


async def test_a_list_of_frames_is_a_clip_of_the_size_of_the_first(make: Make) -> None:
    frames = tuple(
        MediaRef(declared="image", url=data_url(png(*size)), param=f"v[{i}]")
        for i, size in enumerate([(64, 48), (64, 48)])
    )
    options = MediaOptions(fps=4.0)
    ref = MediaRef(declared="video", param="v", options=options, frames=frames)
    loading = make()
    (loaded,) = await loading.load([ref])
    probe = loaded.probe
    assert (probe.kind, probe.width, probe.height) == ("video", 64, 48)
    assert (probe.num_frames, probe.fps, loaded.options.nframes) == (2, 4.0, 2)
    assert (await loading.load([ref]))[0].frames is loaded.frames
    bad = replace(ref, frames=(frames[0], reference(clip(), param="v[1]")))
    error = await error_of(loading, bad)
    assert (error.param, error.code) == ("v[1]", "video_parse_error")


async def test_the_last_of_an_odd_list_of_frames_is_fetched_and_counted_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + png())
        writer.close()

    monkeypatch.setattr(loader, "MAX_REQUEST_PIXELS", 3 * 40 * 24)
    monkeypatch.setattr(budgets, "MAX_REQUEST_BYTES", 3 * len(png()) + 2)
    planner = FakePlanner(lambda probe: tuple(range(probe.num_frames)))
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        part = {"type": "video", "video": [f"{url}/{name}" for name in "abc"]}
        ref = parse_part(part, "v")
        assert ref
        (loaded,) = await make(planner, media_networks=("127.0.0.0/8",)).load([ref])
    assert len(asked) == 3
    assert loaded.frames.shape == (4, 24, 40, 3) and loaded.options.nframes == 4
