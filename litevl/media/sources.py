"""Message parts, `data:` URLs and magic bytes: what a client calls media, and what bytes say it is.

`api/protocol.py` calls `parse_part`; `fetch.py` and `loader.py` call the rest. Knows nothing of
sockets or decoders.
"""

import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from litevl.errors import InvalidValueError, MediaError, UnsupportedParameterError
from litevl.sequence import Detail, MediaKind, MediaOptions, MediaRef

Schema = dict[str, object]
Format = Literal["jpeg", "png", "webp", "gif", "bmp", "mp4", "webm", "avi"]

NOUN: Mapping[MediaKind, str] = {"image": "picture", "video": "clip"}
MAX_BYTES: Mapping[MediaKind, int] = {"image": 20 * 2**20, "video": 64 * 2**20}
MAX_FRAME_LIST = 768  # frames of a clip that comes as pictures
MAX_OPTION = 2**53  # beyond it an integer is not a float any more
BASE64_PIECE = 2**18  # characters, four to three bytes: some 0.5 ms of work
HEAD = 48  # bytes that are enough for `sniff`

_KINDS: Mapping[str, MediaKind] = {
    "image_url": "image",
    "image": "image",
    "input_image": "image",
    "video_url": "video",
    "video": "video",
    "input_video": "video",
    "file": "image",
    "input_file": "image",
}
_KEYS = {"input_image": "image_url", "input_video": "video_url", "input_file": "file_data"}
_LEAST = {"fps": 0.001, "video_start": 0.0, "video_end": 0.001}  # the others are integers
_OPTIONS = tuple(each.name for each in fields(MediaOptions))


# Parts -----------------------------------------------------------------------------------------


def parse_part(
    part: Mapping[str, object], param: str, defaults: MediaOptions = MediaOptions()
) -> MediaRef | None:
    """The picture or clip that a content part refers to; None if the part is no media part.

    `param` is the dotted path of the part; `defaults` hold where it says nothing else.
    `InvalidValueError` for wrong types and contradictions, `UnsupportedParameterError` for what
    litevl knows but cannot do.
    """
    kind = _KINDS.get(str(part.get("type")))
    if kind is None:
        return None
    source, path, inner = _find_source(part, param)
    given = _parse_options(_merge(part, inner, param), param)
    options = _with_defaults(given, defaults)
    _check_contradictions(options, param)
    if isinstance(source, str):
        return MediaRef(
            declared=_declared_kind(source, kind), url=source, param=param, options=options
        )
    _check_frame_options(given, param)
    return MediaRef(
        declared="video", param=param, options=options, frames=_frames(source, path, options)
    )


def _frames(urls: list[object], path: str, options: MediaOptions) -> tuple[MediaRef, ...]:
    """A clip's frames; the last twice where their number is odd, since models look at pairs."""
    if not 1 <= len(urls) <= MAX_FRAME_LIST:
        message = f"{path} must hold 1 to {MAX_FRAME_LIST} frames"
        raise InvalidValueError(message, param=path)
    refs = []
    for index, url in enumerate(urls):
        param = f"{path}[{index}]"
        if not isinstance(url, str):
            raise InvalidValueError(f"{param} must be a data: or http(s) URL", param=param)
        refs.append(MediaRef(declared="image", url=url, param=param, options=options))
    return tuple(refs + refs[-1:] * (len(refs) % 2))


def _check_frame_options(given: MediaOptions, param: str) -> None:
    for name in ("nframes", "min_frames", "max_frames", "video_start", "video_end"):
        if getattr(given, name) is not None:
            raise UnsupportedParameterError(
                f"{param}.{name} is for clips: a list of frames is seen whole, `fps` is its rate",
                param=f"{param}.{name}",
            )


def parse_defaults(value: object, param: str) -> MediaOptions:
    """The options of a whole request (`mm_processor_kwargs`): Qwen's keys, by their names."""
    if not isinstance(value, dict):
        raise InvalidValueError(f"{param} must be an object", param=param)
    for name, each in value.items():
        if name not in _OPTIONS and each is not None:
            raise UnsupportedParameterError(
                f"{param} has a key that litevl does not know: it takes {', '.join(_OPTIONS)}",
                param=param,
            )
    options = _parse_options({k: v for k, v in value.items() if v is not None}, param)
    _check_contradictions(options, param)
    return options


def _with_defaults(given: MediaOptions, defaults: MediaOptions) -> MediaOptions:
    """What the part says; of the defaults, what does not exclude it."""
    if given.fps or given.nframes:
        defaults = replace(defaults, fps=None, nframes=None)
    said = {name: each for name in _OPTIONS if (each := getattr(given, name)) is not None}
    return replace(defaults, **said)


def _find_source(
    part: Mapping[str, object], param: str
) -> tuple[str | list[object], str, Mapping[str, object]]:
    """A URL or a list of frames, its path, and the object that holds it (or an empty one)."""
    kind = str(part["type"])
    key = _KEYS.get(kind, kind)
    value = part.get(key)
    path = f"{param}.{key}"
    inner: Mapping[str, object] = {}
    if isinstance(value, dict):
        inner = value
        name = "file_data" if kind == "file" else "url"
        value, path = inner.get(name), f"{path}.{name}"
    if isinstance(value, list) and _KINDS[kind] == "video":
        return value, path, inner
    if value is None and (part.get("file_id") or inner.get("file_id")):
        raise UnsupportedParameterError(
            f"{path}: uploaded files are not supported: send a data: or http(s) URL", param=path
        )
    if not isinstance(value, str):
        raise InvalidValueError(f"{path} must be a string: a data: or http(s) URL", param=path)
    return _split_frames(value), path, inner


def _split_frames(url: str) -> str | list[object]:
    """`data:video/jpeg;base64,F1,F2,...` as a list of pictures."""
    head = "data:video/jpeg;base64,"
    if url[: len(head)].lower() != head:
        return url
    frames = url[len(head) :].split(",", MAX_FRAME_LIST)  # one too many is enough to refuse
    return [f"data:image/jpeg;base64,{frame}" for frame in frames]


def _declared_kind(url: str, kind: MediaKind) -> MediaKind:
    """A `data:` URL's own media type is the better guess: clients send clips as `image_url`."""
    head = url[:11].lower()
    for each in get_args(MediaKind):
        if head == f"data:{each}/":
            return "video" if each == "video" else "image"
    return kind


def _merge(
    part: Mapping[str, object], inner: Mapping[str, object], param: str
) -> dict[str, object]:
    """Qwen's keys and `detail`, wherever they stand; `null` means absent."""
    given: dict[str, object] = {}
    for source in (part, inner):
        for name in _OPTIONS:
            value = source.get(name)
            if value is None:
                continue
            if given.get(name, value) != value:
                raise InvalidValueError(
                    f"{param}.{name} is given twice with different values: give it once",
                    param=f"{param}.{name}",
                )
            given[name] = value
    return given


def _parse_options(given: Mapping[str, object], param: str) -> MediaOptions:
    read = {name: _option(name, value, f"{param}.{name}") for name, value in given.items()}
    return MediaOptions(**read)


def _option(name: str, value: object, path: str) -> Any:
    if name == "detail":
        return _detail(value, path)
    if name in _LEAST:
        return _number(value, path, _LEAST[name])
    return _integer(value, path)


def _detail(value: object, path: str) -> Detail | None:
    if value == "auto":
        return None
    for each in get_args(Detail):
        if value == each:
            detail: Detail = each
            return detail
    raise InvalidValueError(f"{path} must be auto, low or high", param=path)


def _integer(value: object, path: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_OPTION:
        raise InvalidValueError(f"{path} must be a whole number from 1 up", param=path)
    return value


def _number(value: object, path: str, least: float) -> float:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and least <= value <= MAX_OPTION
    ):
        return float(value)
    raise InvalidValueError(f"{path} must be a number from {least:g} up", param=path)


def _check_contradictions(options: MediaOptions, param: str) -> None:
    def refuse(name: str, why: str) -> InvalidValueError:
        return InvalidValueError(f"{param}.{name} {why}", param=f"{param}.{name}")

    if options.fps is not None and options.nframes is not None:
        raise refuse("nframes", "and fps exclude each other: give one of them")
    if (options.resized_height is None) != (options.resized_width is None):
        missing = "resized_height" if options.resized_height is None else "resized_width"
        raise refuse(missing, "is missing: resized_height and resized_width go together")
    for low, high in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
        if (getattr(options, low) or 0) > (getattr(options, high) or MAX_OPTION):
            raise refuse(low, f"must not be more than {high}")
    if options.video_end is not None and (options.video_start or 0.0) >= options.video_end:
        raise refuse("video_start", "must be less than video_end")


# What passes, as JSON Schema --------------------------------------------------------------------


def _option_schema(name: str) -> Schema:
    if name == "detail":
        return {"type": ["string", "null"], "enum": ["auto", *get_args(Detail), None]}
    kind, least = ("number", _LEAST[name]) if name in _LEAST else ("integer", 1)
    return {"type": [kind, "null"], "minimum": least, "maximum": MAX_OPTION}


def _part_schema(kind: str) -> Schema:
    """Of a part of this type: its URL, or its list of frames, bare or in an object."""
    key = _KEYS.get(kind, kind)
    name = "file_data" if kind == "file" else "url"
    source: list[Schema] = [{"type": "string"}]
    if _KINDS[kind] == "video":
        limits = {"minItems": 1, "maxItems": MAX_FRAME_LIST}
        source.append({"type": "array", "items": {"type": "string"}, **limits})
    inside: Schema = {"type": "object", "properties": {name: {"anyOf": source}, **_OPTION_SCHEMAS}}
    inside["required"] = [name]
    types = {"type": "string", "enum": [kind]}
    return {
        "type": "object",
        "properties": {"type": types, key: {"anyOf": [*source, inside]}, **_OPTION_SCHEMAS},
        "required": ["type", key],
    }


_OPTION_SCHEMAS: Schema = {name: _option_schema(name) for name in _OPTIONS}
PART_SCHEMAS = tuple(_part_schema(kind) for kind in _KINDS)
DEFAULTS_SCHEMA: Schema = {
    "type": "object",
    "properties": _OPTION_SCHEMAS,
    "additionalProperties": {"type": "null"},
}


# Bytes -----------------------------------------------------------------------------------------


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
            f"{param}: the bytes are none of JPEG, PNG, WebP, GIF, BMP, MP4/MOV, WebM/MKV or AVI",
            param=param,
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
            f"{param}: the {NOUN[kind]} is larger than {MAX_BYTES[kind] >> 20} MiB",
            param=param,
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
        f"{ref.param}: broken data: URL: send `data:<media type>;base64,` and padded base64",
        param=ref.param,
        code=f"invalid_base64_{ref.declared}",
    )


def empty_error(ref: MediaRef) -> MediaError:
    """For a reference that leads to no bytes at all."""
    return MediaError(
        f"{ref.param}: the {NOUN[ref.declared]} is empty: it has no bytes",
        param=ref.param,
        code=f"empty_{ref.declared}_file",
    )
