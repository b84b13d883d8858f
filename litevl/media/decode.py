"""Untrusted bytes -> header facts and frames. A program of its own, in a child that can be killed.

`workers.py` starts it, writes jobs to its standard input and reads answers from its standard
output. It knows nothing of litevl (so it starts in a fifth of a second), and once it has loaded its
readers it can open no file and no socket. It answers with codes and numbers, never with a library's
text.
"""

import ctypes
import importlib
import io
import json
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

MAX_PIXELS = 40_000_000  # of one picture or frame
MIN_SIDE = 3
MAX_ASPECT = 200
BATCH_BYTES = 16 * 2**20  # of frames in one message; a single larger frame is a message of its own
MEMORY_BYTES = 4 * 2**30
CPU_SECONDS = 150  # for one job; the parent's deadline comes first unless the child escapes it
MAX_FPS = 1000.0
THREADS = 4  # of decord; left to itself it takes one a core, each with an arena of memory

Frame = NDArray[np.uint8]  # (height, width, 3) RGB, upright


class RefusedError(Exception):
    """The bytes were understood and break a limit: no other reader should try."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault  # too_large, too_small, aspect or too_long


class Source(Protocol):
    """An opened picture or clip: upright size in pixels, frames counted as they are shown."""

    width: int
    height: int
    num_frames: int
    fps: float

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]: ...


def check_shape(width: int, height: int) -> None:
    """`RefusedError` for what no model should see, before anything of that size is allocated."""
    if width * height > MAX_PIXELS:
        raise RefusedError("too_large")
    if min(width, height) < MIN_SIDE:
        raise RefusedError("too_small")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RefusedError("aspect")


# Pictures --------------------------------------------------------------------------------------

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Picture:
    """The first frame of a picture as a person would see it on white paper, 8-bit RGB."""

    num_frames = 1
    fps = 0.0

    def __init__(self, data: bytes, format: str) -> None:
        self._image = Image.open(io.BytesIO(data), formats=_FORMATS)
        self._turn = _UPRIGHT.get(_orientation(self._image))
        width, height = self._image.size
        check_shape(width, height)
        self._frame = self._image.tile[0].extents if self._image.format == "GIF" else None
        _mend_colour_key(self._image)
        is_turned = self._turn in (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])
        self.width, self.height = (height, width) if is_turned else (width, height)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        image = _to_rgb(self._image)
        if self._frame is not None:  # beside it there is nothing; Pillow paints colour 0
            mask = Image.new("1", image.size)
            mask.paste(1, self._frame)
            image = _on_white(image, mask)
        if self._turn is not None:
            image = image.transpose(self._turn)
        pixels = np.asarray(image)
        for _ in indices:
            yield pixels


def _orientation(image: Image.Image) -> int:
    """EXIF orientation from the header; `getexif` would decode a whole PNG to look behind it."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a broken tag must not cost the picture
        return 1


def _mend_colour_key(image: ImageFile.ImageFile) -> None:
    """Pillow holds a PNG's transparent colour, as it is written, against pixels made 8-bit."""
    key = image.info.get("transparency")
    rawmode = image.tile[0].args if image.format == "PNG" else None
    if key is not None and rawmode in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if rawmode == "L;2" else 17)
    elif key is not None and rawmode == "RGB;16B":
        image.info["transparency"] = tuple(channel >> 8 for channel in key)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would clip to 255
        deep = np.asarray(image)
        grey = Image.fromarray((np.clip(deep, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
        key = image.info.get("transparency")
        return grey if key is None else _on_white(grey, Image.fromarray(deep != key))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return _on_white(image.convert("RGB"), image.getchannel("A"))


def _on_white(image: Image.Image, mask: Image.Image) -> Image.Image:
    paper = Image.new("RGB", image.size, (255, 255, 255))
    paper.paste(image, mask=mask)
    return paper


# Clips -----------------------------------------------------------------------------------------


class DecordClip:
    """decord, as in Qwen's own recipe. The size is that of the first frame itself."""

    def __init__(self, data: bytes, format: str) -> None:
        # decord guesses the format and decodes a frame before it tells a size: both are checked
        # first, by a reader that is told the format.
        _check_order(*_open_clip(data, format))
        import decord  # optional: it has no wheel for some machines

        self._reader = decord.VideoReader(io.BytesIO(data), num_threads=THREADS)
        self.num_frames = len(self._reader)
        self.fps = _checked_rate(float(self._reader.get_avg_fps()))
        shape = self._reader[0].shape
        # Of a clip that is turned by 90 degrees decord hands out scrambled frames of 4 channels.
        if shape[-1] != 3:
            raise ValueError("not RGB")
        self.height, self.width = shape[:2]
        check_shape(self.width, self.height)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            yield self._reader[index].asnumpy()


class AvClip:
    """PyAV, one thread, from the start on: slower, but it knows AV1, open GOPs, turned clips."""

    def __init__(self, data: bytes, format: str) -> None:
        self._data, self._format = data, format
        container, stream = _open_clip(data, format)
        # Packets are what decord counts; the last, empty one only flushes.
        times = [packet.pts for packet in container.demux(stream) if packet.size]
        self.num_frames = len(times)
        self.fps = _checked_rate(float(stream.average_rate or _rate(times, stream.time_base)))
        self.height, self.width = next(self.frames([0])).shape[:2]
        check_shape(self.width, self.height)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Frames in any order; where the end cannot be decoded, the last good frame stands in."""
        decoded = self._decode()
        position, frame = 0, next(decoded)
        width, height = frame.width, frame.height  # a stream may change its size on the way
        for index in indices:
            if index < position:
                decoded = self._decode()
                position, frame = 0, next(decoded)
            while position < index and (following := next(decoded, None)) is not None:
                position, frame = position + 1, following
            pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
            yield np.rot90(pixels, round(frame.rotation / 90))

    def _decode(self) -> Iterator[Any]:
        import av

        try:
            container, stream = _open_clip(self._data, self._format)
            yield from container.decode(stream)
        except av.error.InvalidDataError:  # the rest is broken; without any frame, `next` says so
            return


_DEMUXERS: Mapping[str, str] = {"mp4": "mov", "webm": "matroska", "avi": "avi"}


def _open_clip(data: bytes, format: str) -> tuple[Any, Any]:
    """A container and its pictures, of a size that may be decoded; no other format is tried."""
    import av

    container = av.open(io.BytesIO(data), format=_DEMUXERS[format], metadata_errors="replace")
    stream: Any = container.streams.best("video")
    if stream is None:
        raise ValueError("no pictures in it")
    codec = stream.codec_context
    if not codec.width or not codec.height:
        raise ValueError("its header tells no size")
    check_shape(codec.width, codec.height)
    codec.thread_count, codec.thread_type = 1, "NONE"
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # where it grows on the way
    return container, stream


def _check_order(container: Any, stream: Any) -> None:
    """`ValueError` for a clip in which decord would seek to wrong frames.

    It takes a key frame's place among the packets for its place among the pictures, which it is not
    where a GOP is open: some packets behind the key frame are shown before it.
    """
    newest = key = -math.inf
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.pts is None or packet.pts < key or (packet.is_keyframe and packet.pts <= newest):
            raise ValueError("packets in another order than pictures")
        newest = max(newest, packet.pts)
        key = packet.pts if packet.is_keyframe else key


def _rate(times: Sequence[int | None], unit: Any) -> float:
    """Frames a second by the frames' own times: what a browser records has no other."""
    known = [time for time in times if time is not None]
    seconds = float((max(known) - min(known)) * unit) if known else 0.0
    return (len(known) - 1) / seconds if seconds else 0.0


def _checked_rate(fps: float) -> float:
    if not 0.0 < fps <= MAX_FPS:
        raise ValueError("no rate to speak of")
    return fps


# Jobs ------------------------------------------------------------------------------------------

# What the readers would import in the midst of a job. MPO is a kind of JPEG, EXIF one of TIFF.
_LATE_IMPORTS = (
    "PIL.WebPImagePlugin",
    "PIL.MpoImagePlugin",
    "PIL.TiffImagePlugin",
    "av.subtitles.codeccontext",
    "av.subtitles.stream",
    "decord",
)
READERS: Mapping[str, Callable[[bytes, str], Source]] = {
    "pillow": Picture,
    "decord": DecordClip,
    "pyav": AvClip,
}


def pack(header: Mapping[str, object]) -> bytes:
    """A header: its length in 4 bytes, then JSON. What it announces follows: a file, or frames."""
    text = json.dumps(header).encode()
    return struct.pack(">I", len(text)) + text


def answer(job: Mapping[str, Any], data: bytes, out: BinaryIO) -> None:
    """Do one job: `probe` is answered by one message, `decode` by frames, then `done`."""
    source = READERS[job["reader"]](data, job["format"])
    if job["op"] == "probe":
        facts = {name: getattr(source, name) for name in ("width", "height", "num_frames", "fps")}
        out.write(pack(facts))
        return
    batch: list[Frame] = []
    for frame in source.frames(job["indices"]):
        if batch and (len(batch) + 1) * frame.nbytes > BATCH_BYTES:
            _send(batch, out)
            batch.clear()
        batch.append(frame)
    _send(batch, out)
    out.write(pack({"done": True}))


def _send(batch: Sequence[Frame], out: BinaryIO) -> None:
    height, width = batch[0].shape[:2]
    if any(frame.shape != batch[0].shape for frame in batch):
        raise ValueError("frames of different sizes")
    out.write(pack({"frames": len(batch), "height": height, "width": width}))
    for frame in batch:
        out.write(np.ascontiguousarray(frame).data)
    out.flush()


def serve(inp: BinaryIO, out: BinaryIO) -> None:
    """Answer jobs until the parent closes the pipe."""
    while head := inp.read(4):
        job = json.loads(inp.read(struct.unpack(">I", head)[0]))
        data = inp.read(job["size"])
        limit_cpu()
        try:
            answer(job, data, out)
        except RefusedError as error:
            out.write(pack({"refused": error.fault}))
        except Exception:  # noqa: BLE001 - whatever a reader throws at broken bytes
            out.write(pack({"failed": True}))
        out.flush()


def limit_cpu() -> None:
    used = int(sum(os.times()[:2]))
    most = _allowed(resource.RLIMIT_CPU, used + CPU_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _allowed(what: int, limit: int) -> int:
    """`limit`, or the operator's own where that is lower: nobody may go beyond it."""
    hard = resource.getrlimit(what)[1]
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


def load_readers() -> None:
    """Import whatever a job may need: there is no opening of a file later."""
    Image.preinit()
    for name in _LATE_IMPORTS:
        with suppress(ImportError):
            importlib.import_module(name)


def confine() -> None:
    """Little memory, no file or socket opened, no core dump, and no life after the parent's.

    A clip can name other places (SDP, playlists) and make a reader go there: it finds no way.
    """
    for what, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),  # what is open stays open
    ):
        most = _allowed(what, limit)
        resource.setrlimit(what, (most, most))
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    inp, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a library prints must not end up between the messages
        os.dup2(null, stream)
    load_readers()
    confine()
    Image.MAX_IMAGE_PIXELS = None  # `check_shape` is stricter and has an answer of its own
    serve(inp, out)


if __name__ == "__main__":
    main()
