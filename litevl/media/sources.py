"""`data:` URLs and magic bytes: what the bytes say they are, and how many there may be.

`fetch.py`, `local.py` and `loader.py` call it. Knows nothing of sockets or decoders.
"""

import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from litevl.errors import MediaError
from litevl.sequence import MediaKind, MediaRef

Format = Literal["jpeg", "png", "webp", "gif", "bmp", "mp4", "webm", "avi"]

NOUN: Mapping[MediaKind, str] = {"image": "picture", "video": "clip"}
MAX_BYTES: Mapping[MediaKind, int] = {"image": 20 * 2**20, "video": 64 * 2**20}
BASE64_PIECE = 2**16  # characters, four to three bytes: some 0.1 ms of work
HEAD = 48  # bytes that are enough for `sniff`


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What magic bytes say."""

    kind: MediaKind
    format: Format


def sniff(data: bytes, param: str) -> Sniffed:
    """Kind and format by the first `HEAD` bytes; else `MediaError` unsupported_media_type."""
    found = _sniff_image(data) or _sniff_video(data)
    if found is None:
        raise MediaError(
            param,
            "the bytes are none of JPEG, PNG, WebP, GIF, BMP, MP4/MOV, WebM/MKV or AVI",
            code="unsupported_media_type",
        )
    return found


_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def _sniff_image(data: bytes) -> Sniffed | None:
    if data.startswith(b"\xff\xd8\xff"):
        return Sniffed("image", "jpeg")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Sniffed("image", "png")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Sniffed("image", "webp")
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return Sniffed("image", "gif")
    # Two letters are weak magic; the size of the next header makes it strong.
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return Sniffed("image", "bmp")
    return None


_STILL_BRANDS = (
    b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1",
    b"jp2 ", b"jpx ", b"jpm ", b"mjp2", b"crx ",
)  # fmt: skip


def _sniff_video(data: bytes) -> Sniffed | None:
    if data.startswith(b"\x1aE\xdf\xa3"):
        return Sniffed("video", "webm")
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return Sniffed("video", "avi")
    atom = data[4:8]
    is_movie = atom == b"ftyp" and data[8:12] not in _STILL_BRANDS
    # Old QuickTime starts without `ftyp`. The length before it keeps text files out.
    is_old_movie = atom in (b"moov", b"mdat", b"wide", b"free", b"skip") and data[:1] == b"\0"
    return Sniffed("video", "mp4") if is_movie or is_old_movie else None


def check_size(num_bytes: int, kind: MediaKind, param: str) -> None:
    """`MediaError` too_large for a file beyond its kind's limit."""
    if num_bytes > MAX_BYTES[kind]:
        raise MediaError(
            param,
            f"the {NOUN[kind]} is larger than {MAX_BYTES[kind] >> 20} MiB",
            code=f"{kind}_too_large",
        )


def is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def parse_data_url(ref: MediaRef) -> bytes:
    """The bytes of a `data:...;base64,` URL, sniffed first and measured as they are decoded.

    Slow for long ones: call it in a thread. `MediaError` for broken base64, nothing inside, other
    magic bytes, or too much.
    """
    start = ref.url.find(",") + 1
    if ref.url[max(start - 8, 0) : start].lower() != ";base64,":
        raise _broken_base64(ref)
    data: list[bytes] = []
    size, was_padded = 0, False
    kind: MediaKind | None = None
    for piece in _quartets(ref.url, start):
        if kind is None:
            kind = sniff(_decode_base64(piece[: HEAD * 4 // 3], ref), ref.param).kind
            if (len(ref.url) - start) * 3 // 4 > MAX_BYTES[kind]:  # perhaps by its white space
                check_size(_least_size(ref.url, start), kind, ref.param)
        elif was_padded:
            raise _broken_base64(ref)
        data.append(_decode_base64(piece, ref))
        size += len(data[-1])
        was_padded = piece.endswith("=")
        check_size(size, kind, ref.param)
    if kind is None:
        raise empty_error(ref)
    return b"".join(data)


def _least_size(text: str, start: int) -> int:
    """Of the bytes that base64 from `start` on can be, by its length."""
    spaces = sum(text.count(space, start) for space in " \t\r\n")
    return (len(text) - start - spaces) * 3 // 4 - 2


def _quartets(text: str, start: int) -> Iterator[str]:
    """What stands behind `start` without white space (base64 is often wrapped in lines), in pieces
    of whole quartets: one call for all would keep the interpreter from every other client."""
    rest = ""
    for at in range(start, len(text), BASE64_PIECE):
        piece = rest + "".join(text[at : at + BASE64_PIECE].split())
        whole = len(piece) // 4 * 4
        piece, rest = piece[:whole], piece[whole:]
        if piece:
            yield piece
    if rest:
        yield rest


def _decode_base64(piece: str, ref: MediaRef) -> bytes:
    try:
        return binascii.a2b_base64(piece, strict_mode=True)
    except ValueError:
        raise _broken_base64(ref) from None


def _broken_base64(ref: MediaRef) -> MediaError:
    return MediaError(
        ref.param,
        "broken data: URL: send `data:<media type>;base64,` and padded base64",
        code=f"invalid_base64_{ref.declared}",
    )


def empty_error(ref: MediaRef) -> MediaError:
    """For a reference that leads to no bytes at all."""
    return MediaError(
        ref.param,
        f"the {NOUN[ref.declared]} is empty: it has no bytes",
        code=f"empty_{ref.declared}_file",
    )
