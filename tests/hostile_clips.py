"""Clips made to do harm, by a seeded script: nothing of them is kept as a file.

`media_faults.py` sends all of them to a real server, `test_hostile_media.py` a sample. Playlists
lead to a port and a file of whoever asks, who can see whether anybody went there. Knows nothing of
litevl.
"""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cache

import av
import numpy as np

from hostile_pictures import (
    Case,
    as_clip,
    data_url,
    flipped,
    ihdr,
    png_of,
    saved,
    scene,
    seeds,
)
from media_samples import clip, turned


def case(name: str, data: bytes, must_be: int | None = None) -> Case:
    url = data_url(data, "video/mp4")
    return Case(name=name, url=url, kind="video", must_be=must_be, keys=(("max_frames", 8),))


# Good ones -------------------------------------------------------------------------------------


@cache
def clips() -> dict[str, bytes]:
    """Good clips by name; every one is answered 200."""
    made = {
        "h264 mp4": clip(),
        "h264 mov": clip("libx264", "mov"),
        "h264 mkv": clip("libx264", "matroska", bf="3", g="8"),
        "h264 avi": clip("libx264", "avi", bf="2", g="6"),
        "h265 mp4": clip("libx265", **{"x265-params": "log-level=none"}),
        "vp9 webm": clip("libvpx-vp9", "webm"),
        "vp8 webm": clip("libvpx", "webm", g="6"),
        "av1 mp4": clip("libsvtav1"),
        "av1 webm": clip("libsvtav1", "webm"),
        "mpeg4 avi": clip("mpeg4", "avi"),
        "mpeg4 mp4": clip("mpeg4"),
        "mjpeg avi": muxed("avi", "mjpeg", jpegs(12)),
        "uneven": muxed("matroska", "mjpeg", jpegs(8), times=(0, 30, 70, 130, 131, 210, 250, 900)),
        "one frame": muxed("mp4", "mjpeg", jpegs(1)),
    }
    made["a quarter turned"] = turned(made["h264 mp4"], 90)
    made["half turned"] = turned(made["h264 mp4"], 180)
    return made


def jpegs(number: int, width: int = 64, height: int = 48) -> list[bytes]:
    return [saved(scene(width, height).rotate(30 * i), "JPEG") for i in range(number)]


def muxed(
    container: str,
    codec: str,
    packets: list[bytes],
    *,
    size: tuple[int, int] = (64, 48),
    times: tuple[int, ...] = (),
    **options: str,
) -> bytes:
    """Packets as they are, in a container that says `size`; times in hundredths of a second."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_mux_stream(codec, rate=25, width=size[0], height=size[1])
        for index, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 100)
            packet.pts = packet.dts = times[index] if times else 4 * index
            packet.duration, packet.is_keyframe = 4, True
            output.mux(packet)
    return file.getvalue()


# Hostile ones ----------------------------------------------------------------------------------


def hostile_clips(port: int, file: str, seed: int = 0) -> Iterator[Case]:
    """All of them, the same ones for the same seed; playlists lead to `port` and `file`."""
    rng = random.Random(seed)
    for name, data in clips().items():
        yield case(f"good: {name}", data, 200)
        for part in range(6):
            yield case(f"cut {part}: {name}", data[: len(data) * part // 6 + rng.randrange(9)])
        for number in range(6):
            yield case(f"flipped {number}: {name}", flipped(data, rng, 4**number))
        for number in range(8):
            yield case(f"overwritten {number}: {name}", overwritten(data, rng))
    yield from atom_lies(rng)
    yield from extremes()
    yield from playlists(port, file)
    yield from misnamed()


def overwritten(data: bytes, rng: random.Random) -> bytes:
    """A number somewhere, in the first or last kilobyte as a rule, becomes an extreme one."""
    at = rng.choice((rng.randrange(1024), -rng.randrange(8, 1024), rng.randrange(len(data))))
    at %= len(data) - 4
    value = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
    return data[:at] + value + data[at + 4 :]


# Where numbers stand behind the name of an atom, and how many bytes they have.
_NUMBERS = {
    b"mvhd": (12, 16, 20),  # time scale, duration, rate
    b"tkhd": (12, 20, 76, 80),  # id, duration, width, height
    b"mdhd": (12, 16),
    b"stts": (4, 8, 12),  # entries, count, delta
    b"stsz": (4, 8),
    b"stsc": (4, 8, 12),
    b"stco": (4, 8),
    b"stsd": (4, 8),
    b"hdlr": (8,),
    b"elst": (4, 8, 12),
    b"ctts": (4, 8),
    b"avcC": (4, 8),
}


def atom_lies(rng: random.Random) -> Iterator[Case]:
    """MP4 whose tables do not tell the truth: rates of nothing and of everything among them."""
    data = clips()["h264 mp4"]
    for atom, places in _NUMBERS.items():
        if atom not in data:
            continue
        at = data.index(atom) + 4
        for place in places:
            for value in (0, 1, 2**31 - 1, 2**32 - 1):
                lie = data[: at + place] + struct.pack(">I", value) + data[at + place + 4 :]
                yield case(f"{atom.decode()}+{place} says {value}", lie)
        yield case(f"no {atom.decode()}", data.replace(atom, b"free", 1))
    yield case("no moov", data.replace(b"moov", b"xoov", 1), 400)
    yield case("moov called free", data.replace(b"moov", b"free", 1))  # some readers look into it
    yield case("reference outside", data.replace(b"url \0\0\0\1", b"url \0\0\0\0", 1))
    nested = b"".join(struct.pack(">I4s", 2**31, b"moov") for _ in range(10000))
    head = b"\0\0\0\x18ftypisom\0\0\0\0isommp41"
    yield case("10000 atoms in one another", head + nested, 400)
    yield case("endless atom", head + struct.pack(">I4sQ", 1, b"mdat", 2**63 - 1), 400)
    yield case("an atom of no size", head + struct.pack(">I4s", 0, b"moov"), 400)
    yield case("10000 atoms of eight bytes", head + struct.pack(">I4s", 8, b"trak") * 10000, 400)
    yield case("twice", data + data)
    yield case("only the head", head, 400)


def extremes() -> Iterator[Case]:
    """Clips of a shape that nobody expects."""
    frames = jpegs(2)
    yield case("no frames", muxed("matroska", "mjpeg", []), 400)
    yield case("two frames", muxed("mp4", "mjpeg", frames), 200)
    yield case("empty packets", muxed("matroska", "mjpeg", [frames[0], b"x", b"y", frames[1]]))
    yield case("sizes change", muxed("matroska", "mjpeg", jpegs(4) + jpegs(4, 128, 32)))
    yield case("size grows", muxed("matroska", "mjpeg", jpegs(2) + jpegs(1, 6000, 4000)))
    tiny = saved(scene(16, 16), "JPEG")
    yield case("100000 tiny frames", muxed("matroska", "mjpeg", [tiny] * 100000, size=(16, 16)))
    huge = saved(scene(8192, 8192), "JPEG")
    yield case("huge frame", muxed("matroska", "mjpeg", [huge] * 2, size=(8192, 8192)), 400)
    yield case("huge frame that says it is small", muxed("matroska", "mjpeg", [huge] * 2), 400)
    yield case(
        "small frame that says it is huge", muxed("matroska", "mjpeg", frames, size=(16384, 16384))
    )
    hours = tuple(range(0, 3 * 360000, 6000))
    yield case("3 hours", muxed("matroska", "mjpeg", jpegs(180), times=hours), 200)
    years = tuple(10**9 * i for i in range(8))
    yield case("years", muxed("matroska", "mjpeg", jpegs(8), times=years))
    yield case("no duration", muxed("matroska", "mjpeg", jpegs(8), live="1"), 200)
    yield case("1000 a second", muxed("matroska", "mjpeg", jpegs(8), times=tuple(range(8))))
    yield case("no time at all", muxed("matroska", "mjpeg", jpegs(8), times=(0,) * 8))
    yield case("thin", muxed("matroska", "mjpeg", jpegs(2, 2, 600), size=(2, 600)), 400)
    bomb = png_of(ihdr(30000, 30000, 1, 0), zlib.compress(bytes(2**26), 9))
    yield case("a bomb for a frame", muxed("mov", "png", [bomb] * 2, size=(30000, 30000)), 400)
    yield case("a bomb that says it is small", muxed("mov", "png", [bomb] * 2), 400)
    yield case("only sound", sound(), 400)
    yield case("an attachment", attached(), 200)


def sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def attached() -> bytes:
    """A clip that brings a file along."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mjpeg", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        output.add_attachment("../../x.ttf", "font/ttf", bytes(1000))
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.asarray(scene(64, 48)))
            output.mux(stream.encode(frame.reformat(format="yuvj420p")))
        output.mux(stream.encode(None))
    return file.getvalue()


# Playlists -------------------------------------------------------------------------------------

_PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{place}\n#EXT-X-ENDLIST\n",
    "hls key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{place}"\n#EXTINF:9,\n{place}\n',
    "concat": "ffconcat version 1.0\nfile '{place}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\na=control:{place}\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    '<Period><AdaptationSet mimeType="video/mp4"><BaseURL>{place}</BaseURL>'
    '<Representation id="1" bandwidth="9"/></AdaptationSet></Period></MPD>',
    "smil": '<smil><body><video src="{place}"/></body></smil>',
    "asx": '<asx version="3.0"><entry><ref href="{place}"/></entry></asx>',
    "image2": "{place}%03d.jpg",
    "subfile": "subfile,,start,0,end,9,,:{place}",
    "rtsp": "[Reference]\nRef1={place}\n",
    "xspf": "<playlist><trackList><track><location>{place}</location></track></trackList>",
    "realtext": "rtsptext\nrtsp://127.0.0.1:{port}/a\n",
}
_FRONTS = {
    "bare": b"",
    "an mp4's magic": b"AAAAftypisom\n",
    "a mov's magic": b"AAAAftypqt  \n",
    "jp2": b"AAAAftypjp2 \n",
    "an old movie's magic": b"\0\0\0\x08free",
    "a webm's magic": b"\x1aE\xdf\xa3\n",
    "an avi's magic": b"RIFF\xff\xff\0\0AVI \n",
    "a jpeg's magic": b"\xff\xd8\xff\xe0\n",
}


def playlists(port: int, file: str) -> Iterator[Case]:
    for name, text in _PLAYLISTS.items():
        for place in (f"http://127.0.0.1:{port}/a.ts", f"file://{file}", file):
            data = text.format(place=place, port=port).encode()
            for front, magic in _FRONTS.items():
                yield case(f"{name} behind {front}", magic + data, 400)


def misnamed() -> Iterator[Case]:
    """Clips called pictures, and pictures called clips: the bytes decide."""
    for name, data in clips().items():
        yield replace(case(f"as picture: {name}", data, 200), kind="image")
    for name, data in seeds().items():
        yield as_clip(Case(name=name, url=data_url(data), must_be=200))
