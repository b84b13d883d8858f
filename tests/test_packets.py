"""Clips whose packets are not what the next frame lets one expect."""

import av
import pytest
from PIL import Image

from hostile_clips import muxed
from litevl.media import decode
from litevl.media.workers import Workers
from media_samples import clip, encode, indices_shown, item, opened

pytestmark = pytest.mark.anyio


OPEN = {
    "x264": clip(frames=32, **{"x264-params": "open-gop=1:keyint=8:bframes=3"}),
    "x265": clip("libx265", frames=32, **{"x265-params": "keyint=8:bframes=3:log-level=none"}),
    "mpeg4": clip("mpeg4", frames=32, bf="2", g="6"),
    "x264 in mkv": clip(
        "libx264", "matroska", frames=32, **{"x264-params": "open-gop=1:keyint=8:bframes=3"}
    ),
}


@pytest.mark.parametrize("data", OPEN.values(), ids=OPEN)
async def test_a_clip_whose_gops_are_open_shows_the_frames_that_were_asked_for(
    pool: Workers, data: bytes
) -> None:
    """Behind a key frame come pictures shown before it, and decord would seek to wrong frames."""
    indices = (0, 1, 5, 7, 8, 9, 13, 16, 20, 30, 31)
    asked = item(data)
    _, frames = await opened(pool, asked, indices)
    assert indices_shown(frames) == list(indices)
    assert asked.readers == ("pyav",)


async def test_b_frames_within_closed_gops_stay_with_the_fast_reader(pool: Workers) -> None:
    data = item(clip(bf="3", g="8"))
    await opened(pool, data)
    assert data.readers == ("decord", "pyav")


def test_a_frame_that_grows_on_the_way_beyond_the_limit_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures = [
        Image.new("RGB", size, level)
        for size, level in (((64, 48), (50, 50, 50)), ((128, 96), (200, 200, 200)))
    ]
    data = muxed("matroska", "mjpeg", [encode(each, "JPEG") for each in pictures])
    monkeypatch.setattr(decode, "MAX_PIXELS", 64 * 48)
    with pytest.raises(av.error.ArgumentError):
        list(decode.AvClip(data, "webm").frames((0, 1)))
