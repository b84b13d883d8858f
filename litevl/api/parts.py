"""Content parts that are pictures or clips -> references to them, with Qwen's keys.

`messages.py` calls `parse_part`, `protocol.py` reads `mm_processor_kwargs` by `read_defaults`. What
clients call media; what the bytes are, `media/sources.py` finds out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from litevl.api.fields import (
    Integer,
    JSONObject,
    ListOf,
    Number,
    OneOf,
    Reader,
    described,
    json_object,
    object_schema,
    read_fields,
    refuse,
    unsupported,
)
from litevl.sequence import MediaKind, MediaOptions, MediaRef

MAX_FRAME_LIST = 768  # frames of a clip that comes as pictures
MAX_OPTION = 2**53  # beyond it an integer is not a float any more


@dataclass(frozen=True, slots=True)
class _Shape:
    """A type of part: what it calls its bytes, and where their URL stands."""

    kind: MediaKind
    key: str
    inner: str = "url"  # where the key holds an object


_SHAPES = {
    "image_url": _Shape("image", "image_url"),
    "image": _Shape("image", "image"),
    "input_image": _Shape("image", "image_url"),
    "video_url": _Shape("video", "video_url"),
    "video": _Shape("video", "video"),
    "input_video": _Shape("video", "video_url"),
    "file": _Shape("image", "file", "file_data"),
    "input_file": _Shape("image", "file_data"),
}

_COUNTS = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
_OF_FRAMES = ("nframes", "min_frames", "max_frames")
OPTION_FIELDS: Mapping[str, Reader] = {
    **dict.fromkeys((*_COUNTS, *_OF_FRAMES), Integer(1, MAX_OPTION)),
    "fps": Number(0.001, MAX_OPTION),
    "video_start": Number(0, MAX_OPTION),
    "video_end": Number(0.001, MAX_OPTION),
    "detail": OneOf(("auto", "low", "high")),
}


@described({"type": "string"})
def _url(value: object, param: str) -> str:
    return value if isinstance(value, str) else refuse(param, "a string: a data: or http(s) URL")


_frame_list = ListOf(_url, MAX_FRAME_LIST, least=1)


def parse_part(
    part: Mapping[str, object], param: str, defaults: MediaOptions = MediaOptions()
) -> MediaRef | None:
    """The picture or clip that a content part refers to; None if the part is no media part.

    `param` is the dotted path of the part; `defaults` hold where it says nothing else.
    """
    shape = _SHAPES.get(str(part.get("type")))
    if shape is None:
        return None
    source, path, inner = _find_source(part, param, shape)
    given = _read_options(part, inner, param)
    options = _with_defaults(given, defaults)
    _check_contradictions(options, param)
    if isinstance(source, str):
        kind = _declared_kind(source, shape.kind)
        return MediaRef(declared=kind, url=source, param=param, options=options)
    for name in (*_OF_FRAMES, "video_start", "video_end"):
        if name in given:
            unsupported(f"{param}.{name}", "a list of frames is seen whole, `fps` is its rate")
    frames = [
        MediaRef(declared="image", url=url, param=f"{path}[{i}]", options=options)
        for i, url in enumerate(_frame_list(source, path))
    ]
    return MediaRef(declared="video", param=param, options=options, frames=tuple(frames))


def _find_source(
    part: Mapping[str, object], param: str, shape: _Shape
) -> tuple[str | list[object], str, Mapping[str, object]]:
    """A URL or a list of frames, its path, and the object that holds it (or an empty one)."""
    value, path = part.get(shape.key), f"{param}.{shape.key}"
    inner: Mapping[str, object] = {}
    if isinstance(value, dict):
        inner, path = value, f"{path}.{shape.inner}"
        value = inner.get(shape.inner)
    if isinstance(value, list) and shape.kind == "video":
        return value, path, inner
    if value is None and (part.get("file_id") or inner.get("file_id")):
        unsupported(path, "no file is kept, send a data: or http(s) URL")
    return _split_frames(_url(value, path)), path, inner


def _split_frames(url: str) -> str | list[object]:
    """`data:video/jpeg;base64,F1,F2,...` as a list of pictures."""
    head = "data:video/jpeg;base64,"
    if url[: len(head)].lower() != head:
        return url
    frames = url[len(head) :].split(",", MAX_FRAME_LIST)  # one too many is enough to refuse
    return [f"data:image/jpeg;base64,{frame}" for frame in frames]


def _declared_kind(url: str, kind: MediaKind) -> MediaKind:
    """A `data:` URL's own media type is the better guess: clients send clips as `image_url`."""
    guesses: Mapping[str, MediaKind] = {"data:image/": "image", "data:video/": "video"}
    return guesses.get(url[:11].lower(), kind)


# Options ---------------------------------------------------------------------------------------


def _read_options(
    part: Mapping[str, object], inner: Mapping[str, object], param: str
) -> dict[str, Any]:
    """Qwen's keys and `detail`, wherever they stand."""
    given: dict[str, object] = {}
    for source in (part, inner):
        for name in OPTION_FIELDS:
            value = source.get(name)
            if value is not None and given.setdefault(name, value) != value:
                refuse(f"{param}.{name}", "given once, or the same in both places")
    return read_fields(given, OPTION_FIELDS, f"{param}.")


def _with_defaults(given: Mapping[str, Any], defaults: MediaOptions) -> MediaOptions:
    """What the part says; of the defaults, what does not exclude it."""
    if "fps" in given or "nframes" in given:
        defaults = replace(defaults, fps=None, nframes=None)
    # `auto` asks for nothing of its own
    return replace(defaults, **{name: each for name, each in given.items() if each != "auto"})


def _check_contradictions(options: MediaOptions, param: str) -> None:
    if options.fps is not None and options.nframes is not None:
        refuse(f"{param}.nframes", "left out where `fps` is given")
    if (options.resized_height is None) != (options.resized_width is None):
        missing = "resized_height" if options.resized_height is None else "resized_width"
        refuse(f"{param}.{missing}", "given, too: resized_height and resized_width go together")
    for low, high in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
        if (getattr(options, low) or 0) > (getattr(options, high) or MAX_OPTION):
            refuse(f"{param}.{low}", f"at most `{high}`")
    if options.video_end is not None and (options.video_start or 0.0) >= options.video_end:
        refuse(f"{param}.video_start", "less than `video_end`")


_option_schemas = json_object(object_schema(OPTION_FIELDS)["properties"], "")


@described(
    {
        "type": "object",
        "properties": _option_schemas,
        "additionalProperties": {"type": "null"},
    }
)
def read_defaults(value: object, param: str) -> MediaOptions:
    """The options of a whole request (`mm_processor_kwargs`): Qwen's keys, by their names."""
    values = json_object(value, param)
    if any(name not in OPTION_FIELDS and each is not None for name, each in values.items()):
        unsupported(param, f"of its keys litevl knows {', '.join(OPTION_FIELDS)}")
    options = _with_defaults(read_fields(values, OPTION_FIELDS, f"{param}."), MediaOptions())
    _check_contradictions(options, param)
    return options


# What passes, as JSON Schema -------------------------------------------------------------------


def _part_schema(name: str, shape: _Shape) -> JSONObject:
    """Of a part of this type: its URL, or its list of frames, bare or in an object."""
    source = [_url.schema, *([_frame_list.schema] if shape.kind == "video" else [])]
    inside: JSONObject = {
        "type": "object",
        "properties": {shape.inner: {"anyOf": source}, **_option_schemas},
        "required": [shape.inner],
    }
    return {
        "type": "object",
        "properties": {
            "type": OneOf((name,)).schema,
            shape.key: {"anyOf": [*source, inside]},
            **_option_schemas,
        },
        "required": ["type", shape.key],
    }


PART_SCHEMAS = tuple(_part_schema(name, shape) for name, shape in _SHAPES.items())
