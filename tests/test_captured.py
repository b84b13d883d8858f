"""A child that somebody has captured: what it may cost, and that it ends."""

import asyncio
import os
import signal
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from litevl.errors import MediaError
from litevl.media import decode, workers
from litevl.media.workers import Workers
from media_samples import Pixels, clip, code_of, item, opened, png
from test_workers import has_ended

pytestmark = pytest.mark.anyio


async def test_nothing_is_set_aside_for_more_frames_than_a_batch_may_hold(
    pool: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = decode.pack({"frames": 768, "height": 6000, "width": 6000})
    liar = tmp_path / "liar.py"
    liar.write_text(f"import os\nos.write(1, {frames!r})\nwhile os.read(0, 4096): pass\n")
    monkeypatch.setattr(decode, "__file__", str(liar))

    async def keep(batch: Pixels) -> None:
        raise AssertionError

    tracemalloc.start()
    try:
        with pytest.raises(MediaError):
            await pool.decode(item(clip(), "pyav"), range(768), keep)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


FORKING = """
import os, signal
if os.fork() == 0:
    if {flees}:
        os.setsid()
    open({path!r}, "w").write(str(os.getpid()))
    os.write(1, bytes([255] * 4))  # an endless header: the child is not believed, and killed
signal.pause()
"""


@pytest.mark.parametrize("flees", [False, True])
async def test_a_child_that_has_forked_ends_and_leaves_its_place(
    flees: bool, pool: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it forked holds its pipe. It ends with it, unless it flees from the session."""
    path, program = tmp_path / "pid", tmp_path / "forking.py"
    program.write_text(FORKING.format(path=str(path), flees=flees))
    monkeypatch.setattr(workers, "DRAIN_SECONDS", 0.0 if flees else 60.0)
    try:
        async with asyncio.timeout(20):
            with monkeypatch.context() as patched:
                patched.setattr(decode, "__file__", str(program))
                assert await code_of(pool, item(png())) == "image_parse_error"
            await opened(pool, item(png()))
            assert flees or await has_ended(int(path.read_text()))
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)
