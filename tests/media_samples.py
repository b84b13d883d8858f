"""Pictures and clips, made on the spot, and what stands in for the rest of the server around them.

Pictures show four quarters, so that turning shows; frame `i` of a clip is grey `level(i)` in its
lower half, so that a frame tells its own index.
"""

import base64
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from litevl.errors import MediaError
from litevl.media.sources import sniff
from litevl.media.workers import Item, Workers
from litevl.sequence import MediaKind, MediaOptions, MediaPlan, MediaRef, PlannedMedia, Probe

Pixels = NDArray[np.uint8]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
PARAM = "messages[0].content[1]"


def quarters(width: int = 40, height: int = 24) -> Image.Image:
    """Red and green above, blue and white below."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width: int = 40, height: int = 24) -> bytes:
    return encode(quarters(width, height), "PNG")


def corners(frame: Pixels) -> list[tuple[int, ...]]:
    """Colours near the four corners, each channel rounded to 0, 128 or 255."""
    height, width = frame.shape[:2]
    points = [(2, 2), (2, width - 3), (height - 3, 2), (height - 3, width - 3)]
    return [tuple(min(255, round(int(c) / 128) * 128) for c in frame[point]) for point in points]


def level(index: int) -> int:
    return 20 + index * 7


@cache  # x264 need not make the same bytes twice
def clip(
    codec: str = "libx264",
    container: str = "mp4",
    frames: int = 24,
    size: tuple[int, int] = (64, 48),
    fps: int = 8,
    **options: str,
) -> bytes:
    """A clip whose upper half is red on the left and black on the right, in every frame."""
    width, height = size
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "mpeg4":
            stream.bit_rate = 2_000_000  # enough for every grey to arrive
        for index in range(frames):
            pixels = np.full((height, width, 3), level(index), np.uint8)
            pixels[: height // 2] = 0
            pixels[: height // 2, : width // 2] = RED
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        output.mux(stream.encode(None))
    return file.getvalue()


def turned(mp4: bytes, degrees: int) -> bytes:
    """The same clip with a display matrix that turns it clockwise, as phones write it."""
    start = mp4.index(b"tkhd") + 4 + 40  # after version, times, id, duration, layer and volume
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return mp4[:start] + matrix + mp4[start + 36 :]


def indices_shown(frames: Pixels) -> list[int]:
    """Which frames of `clip` these are, by their grey."""
    return [round((float(frame[-8:, 8:-8].mean()) - 20) / 7) for frame in frames]


def data_url(data: bytes, media_type: str = "image/jpeg") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def reference(
    source: bytes | str,
    declared: MediaKind = "image",
    param: str = PARAM,
    options: MediaOptions = MediaOptions(),
) -> MediaRef:
    url = source if isinstance(source, str) else data_url(source)
    return MediaRef(declared=declared, url=url, param=param, options=options)


def item(data: bytes, *readers: str) -> Item:
    """Bytes as the workers take them, for these readers only if any are named."""
    made = Item(data=data, sniffed=sniff(data, PARAM), param=PARAM)
    made.readers = readers or made.readers
    return made


@dataclass
class FakePlanner:
    """Chooses frames by a rule and keeps their size, or cuts them to `size` (width, height)."""

    choose: Callable[[Probe], tuple[int, ...]] = lambda probe: (0, probe.num_frames - 1)
    size: tuple[int, int] | None = None
    probes: list[Probe] = field(default_factory=list)
    batches: list[tuple[int, ...]] = field(default_factory=list)  # shapes handed to `resize`
    on_resize: Callable[[], object] = lambda: None

    def plan(self, probe: Probe, options: MediaOptions, param: str) -> MediaPlan:
        self.probes.append(probe)
        width, height = self.size or (probe.width, probe.height)
        chosen = (0,) if probe.kind == "image" else self.choose(probe)
        return MediaPlan(frame_indices=chosen, width=width, height=height)

    def check(self, media: Sequence[PlannedMedia]) -> None:
        """All of it fits."""

    def resize(self, frames: Pixels, kind: MediaKind, plan: MediaPlan) -> Pixels:
        self.batches.append(frames.shape)
        self.on_resize()
        return frames[:, : plan.height, : plan.width]


async def opened(pool: Workers, data: Item, indices: Sequence[int] = (0,)) -> tuple[Probe, Pixels]:
    """A probe, then these frames."""
    probe = await pool.probe(data)
    batches: list[Pixels] = []

    async def keep(batch: Pixels) -> None:
        batches.append(batch)

    await pool.decode(data, indices, keep)
    return probe, np.concatenate(batches)


async def code_of(pool: Workers, data: Item) -> str:
    with pytest.raises(MediaError) as caught:
        await opened(pool, data)
    assert caught.value.message.startswith(f"{PARAM}: ")
    assert caught.value.param == PARAM
    return caught.value.code
