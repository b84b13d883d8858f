"""The children of the media room: limited, distrusted, killed in time and replaced."""

import asyncio
import io
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from litevl.errors import MediaError, UnavailableError
from litevl.media import decode, workers
from litevl.media.loader import _together
from litevl.media.workers import Item, Workers
from media_samples import Pixels, clip, code_of, encode, indices_shown, item, opened, png

pytestmark = pytest.mark.anyio


@pytest.fixture
async def pool(anyio_backend: str) -> AsyncIterator[Workers]:
    workers = Workers(1)
    yield workers
    pids = workers.pids
    await workers.close()
    assert not any(is_running(pid) for pid in pids)
    assert not workers.pids


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Messages --------------------------------------------------------------------------------------


def test_frames_travel_in_bounded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "BATCH_BYTES", 64 * 48 * 3 * 5)
    out = io.BytesIO()
    job = {"op": "decode", "reader": "pyav", "format": "mp4", "indices": list(range(12))}
    decode.answer(job, clip(), out)
    assert [out.getvalue().count(b'"frames": %d,' % n) for n in (5, 2)] == [2, 1]


LIES = {
    "silence": b"",
    "no length": b"\0\0",
    "endless header": b"\xff\xff\xff\xff",
    "not JSON": struct.pack(">I", 4) + b"oops",
    "deep JSON": struct.pack(">I", 60000) + b"[" * 60000,
    "a list": struct.pack(">I", 2) + b"[]",
    "no facts": decode.pack({}),
    "size of text": decode.pack({"width": "9", "height": 9, "num_frames": 1, "fps": 0.0}),
    "too wide": decode.pack({"width": 10**9, "height": 9, "num_frames": 1, "fps": 0.0}),
    "no frames": decode.pack({"width": 9, "height": 9, "num_frames": 0, "fps": 0.0}),
    "not a rate": decode.pack({"width": 9, "height": 9, "num_frames": 1, "fps": float("nan")}),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_child_that_talks_nonsense_is_not_believed_and_replaced(
    pool: Workers, lie: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = tmp_path / "liar.py"
    liar.write_text(f"import os\nos.write(1, {lie!r})\nos.close(1)\nos.read(0, 4)\n")
    with monkeypatch.context() as patched:
        patched.setattr(decode, "__file__", str(liar))
        assert await code_of(pool, item(png())) == "image_parse_error"
    await opened(pool, item(png()))


async def test_a_child_may_not_send_more_frames_than_asked(
    pool: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = decode.pack({"width": 9, "height": 9, "num_frames": 1, "fps": 0.0})
    frames = decode.pack({"frames": 2, "height": 9, "width": 9}) + bytes(486)
    liar = tmp_path / "liar.py"
    liar.write_text(f"import os\nos.write(1, {probe + frames!r})\nwhile os.read(0, 4096): pass\n")
    monkeypatch.setattr(decode, "__file__", str(liar))
    assert await code_of(pool, item(png())) == "image_parse_error"


# Children --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGXCPU"])
async def test_a_child_that_dies_fails_its_job_and_is_replaced(pool: Workers, what: str) -> None:
    await opened(pool, item(png()))
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)  # so that the job is under way when the child dies
    job = asyncio.create_task(code_of(pool, item(png())))
    while pool._idle:
        await asyncio.sleep(0)
    for each in (signal.Signals[what], signal.SIGCONT):
        os.kill(pid, each)
    assert await job == "image_parse_error"
    await opened(pool, item(png()))
    assert pool.pids and pid not in pool.pids
    assert not os.path.exists(f"/proc/{pid}")  # not even as a zombie


async def has_ended(pid: int) -> bool:
    """Waits for it; whoever adopts an orphan may be slow to reap it."""
    while is_running(pid):
        with open(f"/proc/{pid}/stat") as file:
            if file.read().split()[2] == "Z":
                break
        await asyncio.sleep(0)
    return True


NARROW = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
runpy.run_path({path!r}, run_name="__main__")
"""


async def test_what_needs_more_memory_than_a_child_has_is_given_up(
    pool: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "narrow.py"
    program.write_text(NARROW.format(path=decode.__file__))
    monkeypatch.setattr(decode, "__file__", str(program))
    data = encode(Image.new("RGBA", (6000, 6000)), "PNG", compress_level=1)
    assert await code_of(pool, item(data)) == "image_parse_error"
    await opened(pool, item(png()))


async def test_a_child_killed_while_idle_harms_nobody(pool: Workers) -> None:
    await opened(pool, item(png()))
    (child,) = pool._children
    child.process.kill()
    await child.process.wait()
    await opened(pool, item(png()))
    assert child not in pool._children


async def test_a_clip_goes_on_in_a_new_child_where_the_killed_one_stopped(pool: Workers) -> None:
    data = item(clip(frames=30, size=(640, 480)))
    await pool.probe(data)
    (first,) = pool.pids
    seen: list[int] = []

    async def keep(batch: Pixels) -> None:
        seen.extend(indices_shown(batch))
        if first in pool.pids:
            os.kill(first, signal.SIGKILL)

    await pool.decode(data, range(30), keep)
    assert seen == list(range(30))
    assert first not in pool.pids


async def test_a_child_that_hangs_is_killed_and_the_second_reader_goes_on(
    pool: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(pool, item(png()))
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    data = item(clip())
    data.seconds = 20.0  # the half of it is what decord gets
    loop = asyncio.get_running_loop()
    now = loop.time
    task = asyncio.create_task(opened(pool, data, (0, 5)))
    while pool._idle:
        await asyncio.sleep(0)
    monkeypatch.setattr(loop, "time", lambda: now() + 10.0)
    _, frames = await task
    assert data.readers == ("pyav",)
    assert indices_shown(frames) == [0, 5]
    assert pid not in pool.pids


@pytest.mark.parametrize(
    ("data", "code"), [(png(), "image_parse_error"), (clip(), "video_too_long")]
)
async def test_what_takes_too_long_is_given_up(
    pool: Workers, data: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "__file__", workers.__file__)  # reads nothing, answers nothing
    late = item(data)
    late.seconds = 0.0
    assert await code_of(pool, late) == code


async def test_one_request_has_one_clock_for_all_it_sends(pool: Workers) -> None:
    budget = workers.DecodeBudget()
    both = [item(png()), item(clip())]
    for each in both:
        each.budget = budget
    await opened(pool, both[0])
    assert 0.0 < budget.seconds < workers.REQUEST_SECONDS
    budget.seconds = 0.0
    for each, code in zip(both, ("image_too_large", "video_too_large"), strict=True):
        assert await code_of(pool, each) == code


async def test_who_waits_too_long_for_a_child_is_told_to_come_again(
    pool: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, sending = item(clip(frames=20, size=(1920, 1080))), asyncio.Event()
    job = asyncio.create_task(decode_until(pool, data, sending))
    await sending.wait()
    monkeypatch.setattr(workers, "WAIT_SECONDS", 0.0)
    with pytest.raises(UnavailableError, match="busy"):
        await pool.probe(item(png()))
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    monkeypatch.undo()
    await opened(pool, item(png()))


async def test_cancelling_a_job_kills_its_child_and_frees_its_place(pool: Workers) -> None:
    await opened(pool, item(png()))
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    job = asyncio.create_task(pool.probe(item(png())))
    while pool._idle:
        await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not is_running(pid)
    await opened(pool, item(png()))


async def blocked(pool: Workers) -> None:
    """Until the only child sends more than anybody takes, so that it can neither go on nor end."""
    (child,) = pool._children
    while "paused" not in repr(child._stdout):
        await asyncio.sleep(0)


async def decode_until(pool: Workers, data: Item, stop: asyncio.Event) -> None:
    """A large clip whose first batch is looked at until `stop`, while the child sends the next."""

    async def look(batch: Pixels) -> None:
        await blocked(pool)
        stop.set()
        await asyncio.Event().wait()

    await pool.decode(data, range(20), look)


async def test_cancelling_while_the_child_sends_frees_its_place(pool: Workers) -> None:
    data, sending = item(clip(frames=20, size=(1920, 1080))), asyncio.Event()
    job = asyncio.create_task(decode_until(pool, data, sending))
    await sending.wait()
    (pid,) = pool.pids
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert not is_running(pid)
    await opened(pool, item(png()))


async def test_cancelling_again_while_the_child_ends_leaves_nothing(pool: Workers) -> None:
    data, sending = item(clip(frames=20, size=(1920, 1080))), asyncio.Event()
    job = asyncio.create_task(decode_until(pool, data, sending))
    await sending.wait()
    (child,) = pool._children
    job.cancel()
    while child.ending is None:
        await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await opened(pool, item(png()))
    await child.ending
    assert len(pool.pids) == 1 and child not in pool._children


async def test_a_failing_sibling_ends_a_child_that_sends(pool: Workers) -> None:
    data, sending = item(clip(frames=20, size=(1920, 1080))), asyncio.Event()

    async def work(is_clip: bool) -> None:
        if is_clip:
            await decode_until(pool, data, sending)
        await sending.wait()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await _together(work, (True, False))
    await opened(pool, item(png()))


async def test_closing_ends_a_child_that_sends() -> None:
    pool, sending = Workers(1), asyncio.Event()
    data = item(clip(frames=20, size=(1920, 1080)))
    job = asyncio.create_task(decode_until(pool, data, sending))
    await sending.wait()
    await pool.close()
    assert not pool.pids
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_a_child_that_floods_its_pipe_is_replaced(
    pool: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = decode.pack({"frames": 1, "height": 9, "width": 9}) + bytes(243)
    liar = tmp_path / "liar.py"
    liar.write_text(f"import os\nos.write(1, {frame!r})\nwhile True: os.write(1, bytes(2**20))\n")

    async def look(batch: Pixels) -> None:
        await blocked(pool)

    data = item(png())
    with monkeypatch.context() as patched:
        patched.setattr(decode, "__file__", str(liar))
        with pytest.raises(MediaError):
            await pool.decode(data, (0, 0), look)
    await opened(pool, item(png()))


async def test_a_child_that_cannot_be_started_is_not_the_clients_fault(
    pool: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(UnavailableError, match="try again"):
            await opened(pool, item(png()))
    await opened(pool, item(png()))


async def test_the_children_are_few_and_used_again() -> None:
    pool = Workers(2)
    await asyncio.gather(*(opened(pool, item(png())) for _ in range(6)))
    assert len(pool.pids) == 2
    await pool.close()
    assert not pool.pids


async def test_a_child_knows_no_keys_no_sockets_and_no_torch(
    pool: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITEVL_API_KEY", "sk-canary")
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        await opened(pool, item(clip()), (0,))
        (pid,) = pool.pids
        with open(f"/proc/{pid}/environ") as file:
            assert "canary" not in file.read()
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        listening = os.readlink(f"/proc/self/fd/{server.sockets[0].fileno()}")
        assert listening not in links
        with open(f"/proc/{pid}/maps") as file:
            assert "torch" not in file.read()


async def test_a_child_is_limited_in_memory_files_and_dumps(pool: Workers) -> None:
    await opened(pool, item(png()))
    (pid,) = pool.pids
    with open(f"/proc/{pid}/limits") as file:
        limits = {line[:25].strip(): line[25:].split()[0] for line in file}
    assert limits["Max address space"] == str(decode.MEMORY_BYTES)
    assert limits["Max file size"] == limits["Max core file size"] == "0"
    assert limits["Max open files"] == "0"
    assert limits["Max cpu time"].isdecimal()


STRICTER = """
import resource, runpy
for what, limit in ((resource.RLIMIT_AS, 2**31), (resource.RLIMIT_CPU, 60)):
    resource.setrlimit(what, (limit, limit))
runpy.run_path({path!r}, run_name="__main__")
"""


async def test_an_operators_lower_limits_are_kept(
    pool: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "stricter.py"
    program.write_text(STRICTER.format(path=decode.__file__))
    monkeypatch.setattr(decode, "__file__", str(program))
    await opened(pool, item(png()))
    (pid,) = pool.pids
    with open(f"/proc/{pid}/limits") as file:
        limits = {line[:25].strip(): line[25:].split()[:2] for line in file}
    assert limits["Max address space"] == [str(2**31)] * 2
    assert limits["Max cpu time"] == ["60", "60"]


PARENT = """
import asyncio, os, sys
from litevl.media.workers import Child
async def main():
    child = await Child.start()
    await child.send({"op": "x", "reader": "x", "format": "x", "size": 0}, b"")
    print(child.process.pid, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


async def test_a_child_dies_with_its_parent() -> None:
    parent = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True)
    assert await has_ended(int(parent.stdout))  # a hang here fails the suite's time limit
