"""Pictures made to do harm, by a seeded script: nothing of them is kept as a file.

`media_faults.py` sends all of them to a real server, `test_hostile_media.py` a sample.
`SEEDS` are the good ones that the others are made from, some with the pixels that a person sees.
Knows nothing of litevl.
"""

import base64
import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]  # numbers from 0 to 255, whole or not
Samples = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A message part to send. Whatever it is, the answer is 200 or a 400 with our error shape."""

    name: str
    url: str = field(repr=False)
    kind: Literal["image", "video"] = "image"
    must_be: int | None = None  # the status, where only one is right
    keys: tuple[tuple[str, float], ...] = ()  # Qwen's, for the part

    @property
    def part(self) -> dict[str, object]:
        name = f"{self.kind}_url"
        return {"type": name, name: {"url": self.url}, **dict(self.keys)}


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def case(name: str, data: bytes, must_be: int | None = None) -> Case:
    return Case(name=name, url=data_url(data), must_be=must_be)


# Good ones -------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of(header: bytes, pixels: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, whatever they say."""
    before = b"".join(chunk(*each) for each in extra)
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)


def raw_png(samples: Samples, depth: int, colour: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of (height, width, channels) samples as the specification has it, by hand."""
    height, width, _ = samples.shape
    bits = (samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    return png_of(ihdr(width, height, depth, colour), zlib.compress(raw), *extra)


def on_white(colour: Pixels, alpha: Pixels) -> Pixels:
    """What a person sees: `alpha` from 0 to 1."""
    seen: Pixels = colour * alpha + 255 * (1 - alpha)
    return seen


def raw_pngs(rng: np.random.Generator) -> Iterator[tuple[str, bytes, Pixels]]:
    """Every colour type and depth, with and without transparency, and what it looks like."""
    shape = (24, 32)
    for depth in (1, 2, 4, 8, 16):
        top = 2**depth - 1
        grey = rng.integers(0, top + 1, (*shape, 1))
        seen: Pixels = np.repeat(grey * 255 / top, 3, axis=2)
        yield f"grey {depth}", raw_png(grey, depth, 0), seen
        key = int(grey[0, 0, 0])
        keyed = raw_png(grey, depth, 0, (b"tRNS", struct.pack(">H", key)))
        yield f"grey {depth} keyed", keyed, on_white(seen, 1.0 * (grey != key))
    for depth in (8, 16):
        top = 2**depth - 1
        colour = rng.integers(0, top + 1, (*shape, 4))
        seen, alpha = colour[:, :, :3] * 255 / top, colour[:, :, 3:] / top
        yield f"rgb {depth}", raw_png(colour[:, :, :3], depth, 2), seen
        corner = colour[0, 0, :3]
        keyed = raw_png(colour[:, :, :3], depth, 2, (b"tRNS", struct.pack(">3H", *corner.tolist())))
        is_key = (colour[:, :, :3] == corner).all(axis=2, keepdims=True)
        yield f"rgb {depth} keyed", keyed, on_white(seen, 1.0 * ~is_key)
        yield f"rgba {depth}", raw_png(colour, depth, 6), on_white(seen, alpha)
        both = colour[:, :, 2:]
        grey = np.repeat(seen[:, :, 2:], 3, axis=2)
        yield f"grey alpha {depth}", raw_png(both, depth, 4), on_white(grey, alpha)
    for depth in (1, 2, 4, 8):
        places = rng.integers(0, 2**depth, (*shape, 1))
        table, alphas = rng.integers(0, 256, (2**depth, 3)), rng.integers(0, 256, 2**depth)
        palette = (b"PLTE", table.astype(np.uint8).tobytes())
        seen = 1.0 * table[places[:, :, 0]]
        yield f"palette {depth}", raw_png(places, depth, 3, palette), seen
        alpha_chunk = (b"tRNS", alphas.astype(np.uint8).tobytes())
        data = raw_png(places, depth, 3, palette, alpha_chunk)
        yield f"palette {depth} alpha", data, on_white(seen, alphas[places] / 255)


def scene(width: int = 32, height: int = 24) -> Image.Image:
    """Smooth colours with a hard edge; no two corners alike."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, np.where(x > y, 255.0, 0.0)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(scene(), "JPEG", exif=exif)


@cache
def seeds() -> dict[str, bytes]:
    """Good pictures by name; every one is answered 200."""
    made = {name: data for name, data, _ in raw_pngs(np.random.default_rng(0))}
    others = [scene().rotate(angle) for angle in (90, 180)]
    several = {"save_all": True, "append_images": others, "duration": 100}
    for name, format, options in (
        ("jpeg", "JPEG", {}),
        ("jpeg progressive", "JPEG", {"progressive": True}),
        ("jpeg 420", "JPEG", {"subsampling": 2}),
        ("png", "PNG", {}),
        ("apng", "PNG", several),
        ("gif", "GIF", {}),
        ("gif animated", "GIF", several),
        ("webp", "WEBP", {}),
        ("webp lossless", "WEBP", {"lossless": True}),
        ("webp animated", "WEBP", several),
        ("bmp", "BMP", {}),
    ):
        made[name] = saved(scene(), format, **options)
    for mode, format in (("CMYK", "JPEG"), ("L", "JPEG"), ("P", "BMP"), ("RGBA", "WEBP")):
        made[f"{format.lower()} {mode}"] = saved(scene().convert(mode), format)
    return made | {f"jpeg exif {i}": _oriented(i) for i in range(1, 9)}


# Hostile ones ----------------------------------------------------------------------------------


def pictures(seed: int = 0) -> Iterator[Case]:
    """All of them, the same ones for the same seed."""
    rng = random.Random(seed)
    for name, data in seeds().items():
        yield case(f"good: {name}", data, 200)
        for part in range(15):
            yield case(f"cut {part}: {name}", data[: len(data) * part // 15 + rng.randrange(4)])
        for number in range(38):
            yield case(f"flipped {number}: {name}", flipped(data, rng, 1 + number % 4))
    yield from lies()
    yield from bombs()
    yield from shapes()
    yield from disguised()
    yield from urls()


def flipped(data: bytes, rng: random.Random, number: int) -> bytes:
    changed = bytearray(data)
    for _ in range(number):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def lies() -> Iterator[Case]:
    """Headers that do not tell the truth."""
    pixels = zlib.compress(bytes(4000))
    lengths = (0, 1, 2, 3, 32, 16383, 65535, 2**31 - 1, 2**32 - 1)
    for width in lengths:
        for height in lengths[::3]:
            name = f"png says {width}x{height}"
            yield case(name, png_of(ihdr(width, height), pixels))
    for depth in (0, 3, 16, 255):
        for colour in (0, 1, 3, 6, 7):
            header = ihdr(32, 24, depth, colour)
            yield case(f"png depth {depth} colour {colour}", png_of(header, pixels))
    jpeg = seeds()["jpeg"]
    frame = jpeg.index(b"\xff\xc0") + 5
    for height, width in ((0, 32), (24, 0), (65535, 65535), (6000, 6000), (24, 33)):
        size = struct.pack(">HH", height, width)
        yield case(f"jpeg says {width}x{height}", jpeg[:frame] + size + jpeg[frame + 4 :])
    gif = seeds()["gif"]
    for canvas in ((0, 0), (65535, 65535), (1, 1)):
        yield case(f"gif says {canvas}", gif[:6] + struct.pack("<HH", *canvas) + gif[10:])
    bmp = seeds()["bmp"]
    for sides in ((0, 0), (-32, -24), (2**31 - 1, 2**31 - 1), (32, -24), (32, -(2**31))):
        yield case(f"bmp says {sides}", bmp[:18] + struct.pack("<ii", *sides) + bmp[26:])
    webp = seeds()["webp animated"]
    at = webp.index(b"VP8X") + 12
    for side in (0, 16382, 2**24 - 1):
        both = side.to_bytes(3, "little") * 2
        yield case(f"webp says {side + 1}", webp[:at] + both + webp[at + 6 :])


def bombs() -> Iterator[Case]:
    """Small files that want to become large ones."""
    zeros = zlib.compress(bytes(2**26), 9)
    yield case("bomb: 1 bit", png_of(ihdr(30000, 30000, 1, 0), zeros), 400)
    yield case("bomb: rgb", png_of(ihdr(20000, 20000), zeros), 400)
    yield case("bomb: interlaced", png_of(ihdr(20000, 20000, 8, 2, 1), zeros), 400)
    yield case("bomb: too many pixels", png_of(ihdr(32, 24), zeros))
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        extra = (kind, head + zeros)
        yield case(f"bomb: {kind!r}", png_of(ihdr(32, 24), zlib.compress(bytes(9000)), extra))
    many = [(b"tEXt", b"k\0" + bytes(1000))] * 2000
    yield case("bomb: 2000 texts", png_of(ihdr(32, 24), zlib.compress(bytes(9000)), *many))
    gif = seeds()["gif"]
    start = gif.index(b"\x2c")
    frame = gif[start:-1]
    yield case("bomb: 10000 frames", gif[:start] + frame * 10000 + b";", 200)
    yield case("bomb: huge canvas", gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:], 400)
    huge = saved(Image.new("1", (6300, 6300)), "PNG")
    yield case("large: 39.7 MP of one colour", huge)
    # A progressive JPEG may come back to each pixel as often as it likes.
    yield case("bomb: 2000 scans", scans(4000, 4000, 2000))
    yield case("bomb: RLE", rle_bmp(6000, 6000))
    for name in ("jpeg", "png", "gif", "webp", "bmp"):
        yield case(f"tail of 8 MiB: {name}", seeds()[name] + bytes(2**23))
    yield case("21 MiB", seeds()["jpeg"] + bytes(21 * 2**20), 400)


def scans(width: int, height: int, number: int) -> bytes:
    """A progressive JPEG of next to no bytes whose scans all run over the whole picture."""
    data = saved(Image.new("L", (16, 16), 128), "JPEG", progressive=True)
    frame = data.index(b"\xff\xc2") + 5
    data = data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * number + b"\xff\xd9"


def rle_bmp(width: int, height: int) -> bytes:
    """Runs of 255 equal pixels, up to the end."""
    runs = b"\xff\x01" * (width * height // 255)
    palette = bytes(1024)
    offset = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", offset + len(runs), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return head + info + palette + runs


def shapes() -> Iterator[Case]:
    refused = [
        (1, 1),
        (2, 2),
        (2, 600),
        (201 * 3, 3),
        (3, 201 * 3),
        (1, 10000),
        (10000, 1),
        (1, 30000),
    ]
    taken = [
        (3, 3),
        (27, 257),
        (600, 3),
        (3, 600),
        (26, 28),
        (1093, 6),
        (28, 28),
        (29, 29),
        (1400, 7),
    ]
    for status, sizes in ((400, refused), (200, taken)):
        for size in sizes:
            for mode in ("RGB", "1"):
                data = saved(Image.new(mode, size), "PNG")
                yield case(f"shape {size} {mode}", data, status)


DISGUISED = {
    "tiff": b"II*\0\x08\0\0\0",
    "big tiff": b"MM\0+\0\x08\0\0",
    "fits": b"SIMPLE  =                    T" + bytes(2000),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "pdf": b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\n",
    "psd": b"8BPS\0\1" + bytes(200),
    "icns": b"icns\0\0\0\x08",
    "ico": b"\0\0\1\0\1\0\x10\x10" + bytes(200),
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 ",
    "jp2 brand": b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 " + bytes(200),
    "j2k": b"\xff\x4f\xff\x51" + bytes(200),
    "avif": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(200),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "html": b"<!doctype html><img src=http://127.0.0.1/>",
    "json": b'{"a": "image_url"}' + bytes(100),
    "zip": b"PK\3\4" + bytes(200),
    "gzip": b"\x1f\x8b\x08" + bytes(200),
    "elf": b"\x7fELF\2\1\1" + bytes(200),
    "text": b"a picture of a cat, honestly\n" * 9,
    "pcx": b"\x0a\5\1\x08" + bytes(200),
    "tga": bytes(18) + bytes(200),
    "ppm": b"P6 9 9 255\n" + bytes(300),
    "xbm": b"#define a_width 9\n#define a_height 9\nstatic char a_bits[] = {0};\n",
    "dds": b"DDS |\0\0\0" + bytes(200),
    "exr": b"v/1\1" + bytes(200),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(200),
    "flac": b"fLaC" + bytes(200),
    "ogg": b"OggS" + bytes(200),
    "wav": b"RIFF\0\0\0\0WAVE" + bytes(200),
}
MAGICS = {
    "jpeg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "gif": b"GIF89a",
    "webp": b"RIFF\xff\0\0\0WEBP",
    "bmp": b"BM" + bytes(12) + b"\x28\0\0\0",
}


def disguised() -> Iterator[Case]:
    """Other files called pictures, bare and behind the first bytes of a picture."""
    for name, data in DISGUISED.items():
        yield case(f"disguised {name}", data, 400)
        for format, magic in MAGICS.items():
            yield case(f"{name} behind {format}", magic + data, 400)


def urls() -> Iterator[Case]:
    """What is, and what is not, the syntax of a `data:` URL."""
    good = base64.b64encode(seeds()["png"]).decode()
    head = "data:image/png;base64,"
    for name, url, status in (
        ("plain", head + good, 200),
        ("capitals", "DATA:IMAGE/PNG;BASE64," + good, 200),
        ("no type", "data:;base64," + good, 200),
        ("wrapped", head + "\n".join(good[i : i + 76] for i in range(0, len(good), 76)), 200),
        ("parameters", "data:image/png;name=a.png;charset=x;base64," + good, 200),
        ("wrong type", "data:application/pdf;base64," + good, 200),
        ("a clip's type", "data:video/mp4;base64," + good, 200),
        ("no comma", head[:-1] + good, 400),
        ("no base64", "data:image/png," + good, 400),
        ("base64 twice", "data:image/png;base64;base64," + good, None),
        ("empty", head, 400),
        ("only a comma", "data:,", 400),
        ("one letter", head + "A", 400),
        ("cut", head + good[:-1], 400),
        ("padding in front", head + "====" + good, 400),
        ("padding inside", head + good[:8] + "==" + good[8:], 400),
        ("too much padding", head + good + "====", 400),
        ("URL alphabet", head + good.replace("+", "-").replace("/", "_") + "-_", 400),
        ("percent", head + good.replace("=", "%3D") + "%3D", 400),
        ("nested", head + head + good, 400),
        ("nul", head + good + "\0", 400),
        ("full width", head + good.replace("A", "\uff21"), 400),
        ("a type of 1 MB", "data:image/" + "x" * 2**20 + ";base64," + good, 200),
        ("spaces of 1 MB", head + " " * 2**20 + good, 200),
        ("commas", head + good + ",,,,", 400),
        ("bare base64", good, 400),
        ("file", "file:///etc/passwd", 400),
        ("path", "/etc/passwd", 400),
        ("no scheme", "//127.0.0.1/a.png", 400),
        ("ftp", "ftp://127.0.0.1/a.png", 400),
        ("empty string", "", 400),
        ("frames", "data:video/jpeg;base64," + ",".join([good] * 4), 200),
        ("no frames", "data:video/jpeg;base64,", 400),
        ("empty frames", "data:video/jpeg;base64,,,,", 400),
        ("769 frames", "data:video/jpeg;base64," + ",".join([good] * 769), 400),
        ("100000 frames", "data:video/jpeg;base64," + "A," * 100000, 400),
    ):
        yield Case(name=f"url: {name}", url=url, must_be=status)
        if status == 400:
            yield Case(name=f"clip's url: {name}", url=url, kind="video", must_be=400)


# Alike but not the same ------------------------------------------------------------------------


def twins(seed: int = 0, number: int = 200) -> Iterator[tuple[str, bytes, bytes]]:
    """Pairs that a careless name would take for one picture."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        pixels = rng.integers(0, 256, (60, 40, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        grey = Image.fromarray(pixels[:, :, 0])
        palette = grey.copy()
        palette.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        exif = Image.Exif()
        exif[0x0112] = 2 + index % 7
        alpha = image.copy()
        alpha.putalpha(grey)
        other: dict[str, tuple[Image.Image, Image.Image, dict[str, object]]] = {
            "shape": (image, Image.fromarray(pixels.reshape(40, 60, 3)), {}),
            "mode": (grey, Image.fromarray(pixels[:, :, 0].reshape(20, 40, 3)), {}),
            "palette": (grey, palette, {}),
            "exif": (image, image, {"exif": exif}),
            "alpha": (image, alpha, {}),
        }
        name = list(other)[index % len(other)]
        first, second, options = other[name]
        yield f"{name} {index}", saved(first, "PNG"), saved(second, "PNG", **options)


def as_clip(each: Case) -> Case:
    """The same bytes, called a clip."""
    return replace(each, name=f"as clip: {each.name}", kind="video")
