"""Content parts that are pictures or clips, and Qwen's keys."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevl.api import parts as api_parts
from litevl.api.parts import parse_part
from litevl.errors import InvalidRequestError, InvalidValueError, UnsupportedParameterError
from litevl.sequence import MediaOptions
from media_samples import PARAM

URL = "https://pictures.example/a.png"
CLIP = "data:video/mp4;base64,AAAA"


@pytest.mark.parametrize(
    ("part", "declared"),
    [
        ({"type": "image_url", "image_url": {"url": URL}}, "image"),
        ({"type": "image_url", "image_url": URL}, "image"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "auto"}}, "image"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": None}, "fps": None}, "image"),
        ({"type": "image_url", "image_url": {"url": CLIP}}, "video"),
        ({"type": "video_url", "video_url": {"url": URL}}, "video"),
        ({"type": "video_url", "video_url": URL}, "video"),
        ({"type": "image", "image": URL}, "image"),
        ({"type": "image", "image": {"url": URL}}, "image"),
        ({"type": "video", "video": URL}, "video"),
        ({"type": "file", "file": {"file_data": CLIP, "filename": "a.mp4"}}, "video"),
        ({"type": "file", "file": {"file_data": "data:image/png;base64,AAAA"}}, "image"),
        ({"type": "input_image", "image_url": URL}, "image"),
        ({"type": "input_image", "image_url": URL, "detail": "auto"}, "image"),
    ],
)
def test_every_shape_of_a_media_part_is_understood(part: dict[str, object], declared: str) -> None:
    ref = parse_part(part, PARAM)
    assert ref is not None
    assert ref.declared == declared
    assert ref.url in (URL, CLIP, "data:image/png;base64,AAAA")
    assert ref.param == PARAM
    assert ref.options == MediaOptions()


@pytest.mark.parametrize("part", [{"type": "text", "text": "x"}, {"text": "x"}, {"type": None}, {}])
def test_other_parts_are_none_of_medias_business(part: dict[str, object]) -> None:
    assert parse_part(part, PARAM) is None


OPTIONS: dict[str, Any] = {
    "min_pixels": 1000,
    "max_pixels": 2000,
    "total_pixels": 90000,
    "resized_height": 56,
    "resized_width": 84,
    "fps": 1.5,
    "min_frames": 2,
    "max_frames": 8,
    "video_start": 0,
    "video_end": 2.5,
}


def test_qwens_keys_stand_in_the_part_or_inside_its_url_object() -> None:
    inside = parse_part({"type": "video_url", "video_url": {"url": URL, **OPTIONS}}, PARAM)
    beside = parse_part({"type": "video_url", "video_url": {"url": URL}, **OPTIONS}, PARAM)
    assert inside is not None
    assert inside == beside
    assert inside.options == MediaOptions(**OPTIONS)


COUNTS = ("min_pixels", "nframes", "max_frames", "resized_width")
NOT_COUNTS: tuple[object, ...] = (0, -1, True, 1.5, "4", [4], 2**60)
NUMBERS = ("fps", "video_end", "video_start")
NOT_NUMBERS: tuple[object, ...] = (-1, True, "2", float("nan"), float("inf"), 10**400, {})


@pytest.mark.parametrize(
    ("options", "field"),
    [
        *(({name: value}, name) for name in COUNTS for value in NOT_COUNTS),
        *(({name: value}, name) for name in NUMBERS for value in NOT_NUMBERS),
        ({"fps": 0}, "fps"),
        ({"fps": 2, "nframes": 4}, "nframes"),
        ({"resized_height": 56}, "resized_width"),
        ({"resized_width": 56}, "resized_height"),
        ({"min_pixels": 10, "max_pixels": 9}, "min_pixels"),
        ({"min_frames": 10, "max_frames": 9}, "min_frames"),
        ({"video_start": 2, "video_end": 2}, "video_start"),
    ],
)
def test_impossible_options_are_refused_by_name(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_part({"type": "video_url", "video_url": {"url": URL}, **options}, PARAM)
    assert caught.value.param == f"{PARAM}.{field}"
    assert caught.value.message.startswith(f"`{PARAM}.{field}` ")


def test_an_option_given_twice_must_agree() -> None:
    part = {"type": "video_url", "video_url": {"url": URL, "fps": 2}, "fps": 2}
    assert parse_part(part, PARAM) is not None
    with pytest.raises(InvalidValueError):
        parse_part({**part, "fps": 3}, PARAM)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": [URL, URL], "nframes": 2},
        {"type": "video", "video": [URL, URL], "video_start": 1},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_image", "file_id": "file-1"},
    ],
)
def test_what_is_known_but_cannot_be_done_is_unsupported(part: dict[str, object]) -> None:
    with pytest.raises(UnsupportedParameterError) as caught:
        parse_part(part, PARAM)
    assert caught.value.message.startswith(f"`{PARAM}")


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ({"type": "image_url"}, "image_url"),
        ({"type": "image_url", "image_url": None}, "image_url"),
        ({"type": "image_url", "image_url": {}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": 3}}, "image_url.url"),
        ({"type": "video", "video": True}, "video"),
        ({"type": "video", "video": []}, "video"),
        ({"type": "video", "video": [URL] * 769}, "video"),
        ({"type": "video", "video": [URL, 5]}, "video[1]"),
        ({"type": "image", "image": [URL]}, "image"),
        ({"type": "file", "file": {}}, "file.file_data"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "ultra"}}, "detail"),
    ],
)
def test_wrong_types_are_refused_with_their_path(part: dict[str, object], path: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        parse_part(part, PARAM)
    assert caught.value.param == f"{PARAM}.{path}"


@pytest.mark.parametrize(("detail", "read"), [("auto", None), ("low", "low"), ("high", "high")])
def test_detail_is_read(detail: str, read: str | None) -> None:
    ref = parse_part({"type": "image_url", "image_url": {"url": URL, "detail": detail}}, PARAM)
    assert ref is not None and ref.options.detail == read


def test_a_list_of_frames_is_a_clip() -> None:
    urls = [f"{URL}{i}" for i in range(3)]
    ref = parse_part({"type": "video", "video": urls, "fps": 1}, PARAM)
    assert ref is not None
    assert (ref.declared, ref.options.fps) == ("video", 1.0)
    assert [each.url for each in ref.frames] == urls
    assert [each.param for each in ref.frames[:3]] == [f"{PARAM}.video[{i}]" for i in range(3)]
    joined = parse_part({"type": "video_url", "video_url": "data:video/JPEG;base64,A,B"}, PARAM)
    assert joined is not None
    assert [each.url[-2:] for each in joined.frames] == [",A", ",B"]


def test_frames_in_one_url_are_split_no_further_than_they_are_refused() -> None:
    url = "data:video/jpeg;base64," + "," * 10**6
    assert len(api_parts._split_frames(url)) == api_parts.MAX_FRAME_LIST + 1
    with pytest.raises(InvalidValueError, match="1 to 768 items"):
        parse_part({"type": "video_url", "video_url": url}, PARAM)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [*api_parts.OPTION_FIELDS, "url", "detail", "image_url", "video", "file", "file_id"]
)


@given(
    st.sampled_from(sorted(api_parts._SHAPES)),
    st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON, max_size=4), max_size=5),
)
def test_any_json_is_a_reference_or_a_clean_400(kind: str, part: dict[str, object]) -> None:
    try:
        parse_part({"type": kind, **part}, PARAM)
    except InvalidRequestError as error:
        assert error.status == 400
        assert error.message.startswith(f"`{PARAM}")
