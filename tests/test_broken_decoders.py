"""Decoding children in every kind of trouble, seen by clients: one status, and the next is fine.

Real HTTP, a real media room, scripted answers; `test_workers.py` looks at the children closely.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from fakes import CARD, Rig, assert_error, request_bytes, running
from litevl.api.ports import Backend
from litevl.config import Config
from litevl.media import decode, workers
from litevl.media.loader import MediaLoader
from media_samples import FakePlanner, data_url, encode, png
from test_workers import LIES, NARROW

PART = "messages[0].content[0]"
SILENT = "import os\nwhile os.read(0, 4096): pass\n"  # takes every job, answers none
LARGE = encode(Image.new("RGBA", (6000, 6000)), "PNG", compress_level=1)
CHILDREN = min(4, os.cpu_count() or 1)


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Whose children are none when it has ended."""
    with running(is_loaded=False) as rig:
        backend = Backend(
            card=CARD,
            engine=rig.engine,
            preprocessor=rig.preprocessor,
            grammars=rig.grammars,
            media=MediaLoader(FakePlanner(), Config()),
        )
        rig.service.attach(backend)
        yield rig
    assert children() == []


def children() -> list[psutil.Process]:
    """Decoders of this process, zombies too; not what other tests have started."""
    return [each for each in psutil.Process().children() if is_decoder(each)]


def is_decoder(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()[1:3] in (
            ["-P", "-B"],
            [],
        )  # as `Child.start` calls it, or a zombie
    return False


def content(data: bytes) -> list[dict[str, object]]:
    image = {"type": "image_url", "image_url": {"url": data_url(data)}}
    return [{"role": "user", "content": [image]}]


def ask(rig: Rig, data: bytes) -> httpx.Response:
    return rig.chat(messages=content(data))


@contextmanager
def program(text: str, folder: Path) -> Iterator[None]:
    """What children run that are started now."""
    path = folder / "child.py"
    path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "__file__", str(path))
        yield


def assert_fine_again(rig: Rig) -> None:
    assert ask(rig, png()).status_code == 200
    (child,) = children()
    assert child.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_what_a_child_says_that_is_nonsense_is_a_damaged_picture(
    rig: Rig, lie: bytes, tmp_path: Path
) -> None:
    liar = f"import os\nos.write(1, {lie!r})\nos.close(1)\nos.read(0, 4)\n"
    with program(liar, tmp_path):
        assert_error(ask(rig, png()), 400, "image_parse_error", PART)
    assert_fine_again(rig)


def test_a_picture_for_which_a_child_has_no_memory_is_a_damaged_one(
    rig: Rig, tmp_path: Path
) -> None:
    with program(NARROW.format(path=decode.__file__), tmp_path):
        assert_error(ask(rig, LARGE), 400, "image_parse_error", PART)
        assert_fine_again(rig)  # in the same child: the picture was at fault


def test_while_all_children_are_at_work_the_next_picture_waits_and_is_told_so(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_bytes(messages=content(png()))
    with program(SILENT, tmp_path), ExitStack() as stack:
        for _ in range(CHILDREN):
            stack.enter_context(rig.connect()).sendall(request)
        while len(children()) < CHILDREN:
            assert rig.chat().status_code == 200  # texts need none
        with monkeypatch.context() as patch:
            patch.setattr(workers, "WAIT_SECONDS", 0.0)
            busy = ask(rig, png())
        assert "busy" in assert_error(busy, 503, "server_is_overloaded")
        assert busy.headers["retry-after"]
    while children():  # who asked has left
        assert rig.chat().status_code == 200
    assert_fine_again(rig)
