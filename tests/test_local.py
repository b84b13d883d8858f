"""file:// URLs: files of the one folder that was opened, and of no other."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from litevl.config import Config
from litevl.errors import ConfigError, MediaError
from litevl.media.loader import MediaLoader
from litevl.sequence import MediaRef
from media_samples import FakePlanner, png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An open folder with a picture, beside a secret one."""
    inside = tmp_path / "open"
    (inside / "sub").mkdir(parents=True)
    (inside / "a b.png").write_bytes(png())
    (inside / "sub" / "c.png").write_bytes(png())
    (inside / "empty.png").touch()
    (inside / "text.png").write_text("no picture at all, and long enough to be one of them")
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "open-too.png").write_bytes(png())
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "way").symlink_to(tmp_path)
    (inside / "ring.png").symlink_to("ring.png")
    os.mkfifo(inside / "pipe.png")
    return inside


@pytest.fixture
async def loader(folder: Path) -> AsyncIterator[MediaLoader]:
    config = Config(allowed_local_media_path=str(folder))
    loader = MediaLoader(FakePlanner(lambda probe: (0,)), config)
    yield loader
    await loader.close()


def reference(url: str) -> MediaRef:
    return MediaRef(declared="image", url=url, param="messages[0].content[0]")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path", ["a%20b.png", "sub/c.png", "sub/../a%20b.png", "way/open/sub/c.png"]
)
async def test_a_file_of_the_folder_is_a_picture(
    loader: MediaLoader, folder: Path, path: str
) -> None:
    (loaded,) = await loader.load([reference(f"file://{folder}/{path}")])
    assert (loaded.probe.width, loaded.probe.height) == (40, 24)
    assert await loader.load([reference(f"FILE://localhost{folder}/{path}")])


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    [
        "../secret.png", "%2e%2e/secret.png", "sub/../../secret.png", "link.png", "way/secret.png",
        "../open-too.png", "missing.png", "sub", "", "pipe.png", "a%00.png",
        "ring.png", "ring.png/c.png",
        "/etc/passwd", "../../../../../../etc/passwd",
    ],
)  # fmt: skip
async def test_what_lies_elsewhere_or_is_no_file_is_refused_alike(
    loader: MediaLoader, folder: Path, path: str
) -> None:
    with pytest.raises(MediaError) as caught:
        await loader.load([reference(f"file://{folder}/{path}")])
    assert caught.value.code == "invalid_image_url"
    assert str(folder) not in caught.value.message


@pytest.mark.anyio
@pytest.mark.parametrize("detour", ["/etc/..", "/nothing/.."])
async def test_whether_something_exists_elsewhere_is_not_told_by_a_way_through_it(
    loader: MediaLoader, folder: Path, detour: str
) -> None:
    assert await loader.load([reference(f"file://{detour}{folder}/a%20b.png")])
    with pytest.raises(MediaError) as caught:
        await loader.load([reference(f"file:///proc/self/root{folder}/a%20b.png")])
    assert caught.value.code == "invalid_image_url"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "url", ["file://host{}/a%20b.png", "file:{}/a%20b.png", "file://a%20b.png"]
)
async def test_only_absolute_urls_of_this_machine_are_read(
    loader: MediaLoader, folder: Path, url: str
) -> None:
    with pytest.raises(MediaError) as caught:
        await loader.load([reference(url.format(folder))])
    assert caught.value.code == "invalid_image_url"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "code"), [("empty.png", "empty_image_file"), ("text.png", "unsupported_media_type")]
)
async def test_a_file_that_is_no_picture_is_told_as_such(
    loader: MediaLoader, folder: Path, name: str, code: str
) -> None:
    with pytest.raises(MediaError) as caught:
        await loader.load([reference(f"file://{folder}/{name}")])
    assert caught.value.code == code


@pytest.mark.anyio
async def test_without_a_folder_no_file_is_opened(folder: Path) -> None:
    loader = MediaLoader(FakePlanner(lambda probe: (0,)), Config())
    with pytest.raises(MediaError) as caught:
        await loader.load([reference(f"file://{folder}/a%20b.png")])
    assert caught.value.code == "invalid_image_url"
    await loader.close()


def test_a_folder_that_is_none_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        Config(allowed_local_media_path=str(tmp_path / "none"))
