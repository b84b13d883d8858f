"""What the decode children make of pictures and clips."""

import errno
import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from litevl.errors import MediaError
from litevl.media import decode
from litevl.media.workers import Workers
from litevl.sequence import Probe
from media_samples import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    clip,
    code_of,
    corners,
    encode,
    indices_shown,
    item,
    level,
    opened,
    png,
    quarters,
    turned,
)

pytestmark = pytest.mark.anyio


# Pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
async def test_every_picture_format_shows_its_colours(pool: Workers, format: str) -> None:
    probe, frames = await opened(pool, item(encode(quarters(), format)))
    assert probe == Probe(kind="image", width=40, height=24)
    assert frames.shape == (1, 24, 40, 3)
    assert corners(frames[0]) == [RED, GREEN, BLUE, WHITE]


BACK = {  # what undoes each EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
async def test_a_picture_stands_upright_by_its_exif(pool: Workers, format: str) -> None:
    for orientation, turn in BACK.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = quarters() if turn is None else quarters().transpose(turn)
        probe, frames = await opened(pool, item(encode(stored, format, exif=exif)))
        assert (probe.width, probe.height) == (40, 24)
        assert corners(frames[0]) == [RED, GREEN, BLUE, WHITE], orientation


async def test_a_broken_exif_does_not_cost_the_picture(pool: Workers) -> None:
    data = encode(quarters(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    _, frames = await opened(pool, item(data))
    assert corners(frames[0]) == [RED, GREEN, BLUE, WHITE]


def see_through() -> Image.Image:
    """The quarters, the red one without any paint."""
    image = quarters().convert("RGBA")
    image.paste((255, 0, 0, 0), (0, 0, 20, 12))
    return image


def palette_with_hole() -> bytes:
    image = quarters().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    return encode(image, "PNG", transparency=image.getpixel((1, 1)))


@pytest.mark.parametrize(
    "data",
    [
        encode(see_through(), "PNG"),
        encode(see_through(), "WEBP", lossless=True),
        encode(see_through(), "GIF"),
        palette_with_hole(),
        encode(quarters(), "PNG", transparency=RED),
    ],
    ids=["png", "webp", "gif", "palette", "colour key"],
)
async def test_what_is_see_through_is_laid_on_white(pool: Workers, data: bytes) -> None:
    _, frames = await opened(pool, item(data))
    assert corners(frames[0]) == [WHITE, GREEN, BLUE, WHITE]


async def test_half_transparency_is_blended_as_in_qwens_recipe(pool: Workers) -> None:
    _, frames = await opened(pool, item(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG")))
    assert set(frames.ravel().tolist()) == {127}


def grey16() -> bytes:
    ramp = np.repeat(np.array([[0, 0x4000, 0x8000, 0xFFFF]], np.uint16), 4, axis=0)
    return encode(Image.fromarray(ramp), "PNG")


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (grey16(), [0, 64, 128, 255]),
        (encode(quarters().convert("L"), "PNG"), [76, 150, 29, 255]),
        (encode(quarters().convert("LA"), "PNG"), [76, 150, 29, 255]),
        (encode(quarters().convert("1", dither=Image.Dither.NONE), "PNG"), [0, 255, 0, 255]),
    ],
    ids=["16 bits", "grey", "grey with alpha", "1 bit"],
)
async def test_grey_pictures_keep_their_brightness(
    pool: Workers, data: bytes, values: list[int]
) -> None:
    _, frames = await opened(pool, item(data))
    frame = frames[0]
    assert (frame == frame[:, :, :1]).all()
    seen = frame[0, :, 0] if frame.shape[0] == 4 else frame[[2, 2, -3, -3], [2, -3, 2, -3], 0]
    assert seen.tolist() == values


async def test_a_cmyk_jpeg_and_a_palette_become_rgb(pool: Workers) -> None:
    for data in (
        encode(quarters().convert("CMYK"), "JPEG"),
        encode(quarters().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        encode(quarters().convert("P", palette=Image.Palette.ADAPTIVE), "BMP"),
    ):
        _, frames = await opened(pool, item(data))
        assert corners(frames[0]) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
async def test_an_animation_shows_its_first_frame(pool: Workers, format: str) -> None:
    others = [Image.new("RGB", (40, 24), colour) for colour in (BLUE, GREEN)]
    data = encode(quarters(), format, save_all=True, append_images=others, duration=100)
    probe, frames = await opened(pool, item(data))
    assert (probe.kind, probe.num_frames) == ("image", 1)
    assert corners(frames[0]) == [RED, GREEN, BLUE, WHITE]


async def test_what_a_gif_leaves_empty_is_white(pool: Workers) -> None:
    data = bytearray(encode(Image.new("RGB", (20, 12), BLUE), "GIF"))
    data[6:10] = struct.pack("<HH", 40, 24)  # the canvas; the frame stays in its corner
    _, frames = await opened(pool, item(bytes(data)))
    assert corners(frames[0]) == [BLUE, WHITE, WHITE, WHITE]


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises this size; behind it there is next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("width", "height", "code"),
    [
        (8001, 5000, "image_too_large"),
        (30000, 30000, "image_too_large"),
        (2**31 - 1, 2**31 - 1, "image_too_large"),
        (1, 1, "image_too_small"),
        (2, 100, "image_too_small"),
        (100, 2, "image_too_small"),
        (3, 603, "image_too_small"),
        (603, 3, "image_too_small"),
        (200, 200, "image_parse_error"),  # the size is fine, the pixels are missing
    ],
)
async def test_shapes_are_refused_by_the_header(
    pool: Workers, width: int, height: int, code: str
) -> None:
    assert await code_of(pool, item(png_claiming(width, height))) == code


@pytest.mark.parametrize(("width", "height"), [(3, 3), (3, 600), (600, 3), (8000, 5000)])
async def test_shapes_at_the_limit_are_decoded(pool: Workers, width: int, height: int) -> None:
    probe, frames = await opened(pool, item(png(width, height)))
    assert (probe.width, probe.height) == (width, height)
    assert frames.shape == (1, height, width, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
async def test_broken_pictures_are_parse_errors_and_the_child_lives_on(
    pool: Workers, format: str
) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    data = encode(noise, format)
    await opened(pool, item(png()))
    before = pool.pids
    assert await code_of(pool, item(data[:48])) == "image_parse_error"
    assert await code_of(pool, item(data[:26] + b"\xff" * 200)) in (
        "image_parse_error",
        "image_too_large",
        "image_too_small",
    )
    await opened(pool, item(data))
    assert pool.pids == before


# Clips -----------------------------------------------------------------------------------------

CLIPS = {
    "h264 mp4": clip(),
    "h264 mov": clip("libx264", "mov"),
    "h264 mkv": clip("libx264", "matroska", bf="3", g="8"),
    "h264 b-frames": clip(bf="3", g="8"),
    "h265 mp4": clip("libx265"),
    "vp9 webm": clip("libvpx-vp9", "webm"),
    "vp8 webm": clip("libvpx", "webm", g="6"),
}


@pytest.mark.parametrize("data", CLIPS.values(), ids=CLIPS)
async def test_decord_and_pyav_show_the_same_frames(pool: Workers, data: bytes) -> None:
    indices = (0, 1, 5, 6, 7, 15, 22, 23)
    seen = [await opened(pool, item(data, reader), indices) for reader in ("decord", "pyav")]
    assert (
        seen[0][0] == seen[1][0] == Probe(kind="video", width=64, height=48, num_frames=24, fps=8.0)
    )
    assert np.abs(seen[0][1].astype(int) - seen[1][1]).max() <= 2
    assert indices_shown(seen[0][1]) == list(indices)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
async def test_an_avi_without_presentation_times_shows_the_right_frames(
    pool: Workers, codec: str
) -> None:
    indices = (0, 5, 15, 22, 23)
    probe, frames = await opened(pool, item(clip(codec, "avi", bf="2", g="6")), indices)
    assert probe == Probe(kind="video", width=64, height=48, num_frames=24, fps=8.0)
    assert indices_shown(frames) == list(indices)


@pytest.mark.parametrize("reader", ["decord", "pyav"])
async def test_frames_come_as_asked_even_backwards_and_twice(pool: Workers, reader: str) -> None:
    indices = (3, 3, 20, 4, 0, 23)
    _, frames = await opened(pool, item(clip(bf="2", g="6"), reader), indices)
    assert indices_shown(frames) == list(indices)


@pytest.mark.parametrize("container", ["mp4", "webm", "matroska"])
async def test_av1_which_decord_cannot_read_is_read_by_pyav(pool: Workers, container: str) -> None:
    data = item(clip("libsvtav1", container))
    probe, frames = await opened(pool, data, (0, 9, 23))
    assert data.readers == ("pyav",)
    assert (probe.num_frames, probe.fps) == (24, 8.0)
    assert indices_shown(frames) == [0, 9, 23]


@pytest.mark.parametrize(
    ("degrees", "size", "red"), [(90, (48, 64), 1), (180, (64, 48), 3), (270, (48, 64), 2)]
)
async def test_a_turned_clip_stands_upright(
    pool: Workers, degrees: int, size: tuple[int, int], red: int
) -> None:
    """Its red corner, left above in storage, is where a player would show it."""
    probe, frames = await opened(pool, item(turned(clip(), degrees)), (0, 12))
    assert (probe.width, probe.height) == size
    assert frames.shape[1:3] == (size[1], size[0])
    for frame in frames:
        assert [corner[0] > 200 for corner in corners(frame)].index(True) == red


@pytest.mark.parametrize("reader", ["decord", "pyav"])
async def test_both_readers_turn_a_clip_upside_down_alike(pool: Workers, reader: str) -> None:
    _, frames = await opened(pool, item(turned(clip(), 180), reader), (4,))
    assert [corner[0] > 200 for corner in corners(frames[0])] == [False, False, False, True]


async def test_a_clip_of_one_frame_is_a_clip(pool: Workers) -> None:
    probe, frames = await opened(pool, item(clip(frames=1)), (0,))
    assert (probe.kind, probe.num_frames) == ("video", 1)
    assert indices_shown(frames) == [0]


async def test_without_decord_pyav_reads_alone() -> None:
    source = decode.READERS["pyav"](clip(), "mp4")
    frames = np.stack(list(source.frames((0, 7, 23))))
    assert (source.num_frames, source.fps, source.width, source.height) == (24, 8.0, 64, 48)
    assert indices_shown(frames) == [0, 7, 23]


def sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        clip()[:200],
        clip()[:-1200] + bytes(1200),
        clip("libvpx-vp9", "webm")[:300],
        clip("mpeg4", "avi")[:100],
        clip()[:48] + b"\xff" * 4000,
        sound(),
        b"\0\0\0\x18ftypisom" + b"#EXTM3U\nfile:///etc/passwd\n" * 9,
    ],
    ids=["cut mp4", "no index", "cut webm", "cut avi", "garbage", "only sound", "playlist"],
)
async def test_broken_clips_are_parse_errors(pool: Workers, data: bytes) -> None:
    assert await code_of(pool, item(data)) == "video_parse_error"


async def test_a_clip_that_tells_no_size_is_not_called_too_small(pool: Workers) -> None:
    data = bytearray(clip())
    entry = data.find(b"avc1", data.find(b"stsd"))
    data[entry : entry + 4], data[entry + 28 : entry + 32] = b"mp4v", bytes(4)
    data = data.replace(b"avcC", b"free")
    with pytest.raises(MediaError) as caught:
        await pool.probe(item(bytes(data)))
    assert caught.value.code == "video_parse_error"
    assert "shorter" not in caught.value.message


def leading_elsewhere(magic: bytes, port: int) -> bytes:
    """A session description behind the magic of a clip: readers that guess would listen there."""
    return magic + (
        b"\nv=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video %d RTP/AVP 96\na=rtpmap:96 H264/90000\n" % port
    )


@pytest.mark.parametrize("magic", [b"AAAAftypisom", b"AAAAftypqt  ", b"\x1aE\xdf\xa3"])
async def test_what_leads_elsewhere_opens_no_socket(pool: Workers, magic: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    # decord alone, as it was asked before anything looked at the format
    assert (
        await code_of(pool, item(leading_elsewhere(magic, port), "decord")) == "video_parse_error"
    )
    (pid,) = pool.pids
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not [link for link in links if link.startswith("socket")]


NO_WAY_OUT = """
import socket, sys
sys.argv = [sys.argv[1]]
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("decode", sys.argv[0])
decode = module_from_spec(spec)
spec.loader.exec_module(decode)
decode.load_readers()
decode.confine()
for attempt in (lambda: open("/etc/passwd"), socket.socket, lambda: open("x", "w")):
    try:
        attempt()
    except OSError as error:
        print(error.errno)
"""


async def test_a_confined_child_can_open_neither_file_nor_socket() -> None:
    command = (sys.executable, "-c", NO_WAY_OUT, decode.__file__)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == [str(errno.EMFILE)] * 3


def recorded(duration: bool) -> bytes:
    """A clip as a browser records it: frames at uneven times, nothing said of rate or length."""
    file = io.BytesIO()
    options = {} if duration else {"live": "1"}
    with av.open(file, "w", format="webm", options=options) as output:
        stream = output.add_stream("libvpx", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate((0, 30, 70, 130, 160, 210, 250, 400)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level(index), np.uint8))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("duration", [True, False])
async def test_a_clip_recorded_in_a_browser_is_read(pool: Workers, duration: bool) -> None:
    probe, frames = await opened(pool, item(recorded(duration)), (0, 3, 7))
    assert probe.num_frames == 8 and 10 < probe.fps < 31
    assert indices_shown(frames) == [0, 3, 7]


async def test_a_clip_cut_short_shows_what_is_there(pool: Workers) -> None:
    data = clip("libx264", "matroska", g="4")
    probe, frames = await opened(pool, item(data[: len(data) * 2 // 3], "pyav"), (0, 4))
    assert 4 < probe.num_frames < 24
    assert indices_shown(frames) == [0, 4]
