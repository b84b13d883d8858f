"""`data:` URLs and magic bytes."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevl.errors import LitevlError, MediaError
from litevl.media import sources
from litevl.media.sources import parse_data_url, sniff
from media_samples import PARAM, clip, data_url, encode, png, quarters, reference


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_pictures_are_known_by_their_bytes(format: str) -> None:
    found = sniff(encode(quarters(), format)[: sources.HEAD], PARAM)
    assert (found.kind, found.format) == ("image", format.lower())


@pytest.mark.parametrize(
    ("codec", "container", "format"),
    [
        ("libx264", "mp4", "mp4"),
        ("libx264", "mov", "mp4"),
        ("libx264", "matroska", "webm"),
        ("libvpx-vp9", "webm", "webm"),
        ("mpeg4", "avi", "avi"),
    ],
)
def test_clips_are_known_by_their_bytes(codec: str, container: str, format: str) -> None:
    found = sniff(clip(codec, container, frames=2)[: sources.HEAD], PARAM)
    assert (found.kind, found.format) == ("video", format)


OTHER_FILES = {
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "sdp": b"v=0\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n",
    "sdp behind an atom": b"AAAAfree\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n",
    "dash": b'<?xml version="1.0"?><MPD profiles="urn:mpeg:dash"/>',
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "html": b"<!DOCTYPE html>",
    "json": b'{"a": 1}',
    "pdf": b"%PDF-1.7\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "tiff": b"II*\0\x08\0\0\0",
    "psd": b"8BPS\0\1",
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "fits": b"SIMPLE  =                    T",
    "ico": b"\0\0\1\0\1\0",
    "avif": b"\0\0\0\x20ftypavif\0\0\0\0",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0",
    "wav": b"RIFF\x24\0\0\0WAVEfmt ",
    "ogg": b"OggS\0\2",
    "flv": b"FLV\1\5",
    "mpegts": b"G@\0\x10" + bytes(60),
    "zip": b"PK\3\4",
    "elf": b"\x7fELF",
    "two letters": b"BM, said the text",
    "one byte": b"\xff",
}


@pytest.mark.parametrize("data", OTHER_FILES.values(), ids=OTHER_FILES)
def test_all_other_files_are_refused_by_their_bytes(data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        parse_data_url(reference(data_url(data, "video/mp4")))
    assert caught.value.code == "unsupported_media_type"


def test_a_data_url_gives_its_bytes_whatever_type_it_declares() -> None:
    for media_type in ("image/jpeg", "video/mp4", "", "image/png;charset=utf-8"):
        assert parse_data_url(reference(data_url(png(), media_type))) == png()


def test_base64_may_be_wrapped_in_lines_and_the_scheme_in_capitals() -> None:
    text = base64.encodebytes(png()).decode()
    assert parse_data_url(reference(f"DATA:image/png;BASE64,{text}")) == png()


@pytest.mark.parametrize(
    "damage",
    [
        lambda url: url.rstrip("="),  # no padding: 40x24 needs some
        lambda url: url + "=",
        lambda url: url[:40] + "*" + url[41:],
        lambda url: url[:40] + "-_" + url[42:],
        lambda url: url + "é",
        lambda url: url.replace(";base64", ""),
        lambda url: url.replace(",", ";"),
        lambda url: "data:",
    ],
)
def test_broken_base64_is_named_for_its_kind(damage: Any) -> None:
    data = png()
    data += bytes(1 + -len(data) % 3)  # so that padding is needed
    for declared in ("image", "video"):
        with pytest.raises(MediaError) as caught:
            parse_data_url(reference(damage(data_url(data)), declared))
        assert caught.value.code == f"invalid_base64_{declared}"
        assert caught.value.message.startswith(PARAM)


@pytest.mark.parametrize("declared", ["image", "video"])
def test_nothing_after_the_comma_is_an_empty_file(declared: Any) -> None:
    with pytest.raises(MediaError) as caught:
        parse_data_url(reference("data:image/png;base64, \n", declared))
    assert caught.value.code == f"empty_{declared}_file"


@pytest.mark.parametrize(("kind", "head"), [("image", png()), ("video", clip(frames=2))])
def test_size_is_limited_by_what_the_bytes_are(
    kind: Any, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = len(head) + 3
    monkeypatch.setattr(sources, "MAX_BYTES", {"image": 2**40, "video": 2**40, kind: limit})
    assert len(parse_data_url(reference(head + bytes(3)))) == limit
    with pytest.raises(MediaError) as caught:
        parse_data_url(reference(head + bytes(4)))
    assert caught.value.code == f"{kind}_too_large"


@given(st.text(max_size=60))
def test_any_data_url_is_bytes_or_a_clean_error_without_its_content(text: str) -> None:
    try:
        parse_data_url(reference("data:" + text))
    except LitevlError as error:
        assert error.status == 400
        assert len(text) < 12 or text not in error.message
