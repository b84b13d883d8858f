"""The children that open untrusted bytes: started, given jobs, killed and replaced.

`loader.py` calls `Workers.probe` and `Workers.decode`. One child does one job at a time, within a
deadline; whatever goes wrong in it ends it, never the server. Nothing that a child says is believed
beyond numbers that are checked. Knows what a message is (`decode.py`), not what a picture is.
"""

import asyncio
import json
import os
import signal
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from litevl.errors import MediaError, UnavailableError
from litevl.media import decode
from litevl.media.sources import NOUN, Format, Sniffed
from litevl.sequence import MediaKind, Probe

Sink = Callable[[NDArray[np.uint8]], Awaitable[None]]  # takes (n, height, width, 3) frames
T = TypeVar("T")

SECONDS: Mapping[MediaKind, float] = {"image": 15.0, "video": 30.0}  # to probe and decode one item
REQUEST_SECONDS = 60.0  # of children's work for one request, all its items together
WAIT_SECONDS = 60.0  # for a child to be free
DRAIN_SECONDS = 5.0  # for the output of a killed child to end
# AVI tells no presentation times, without which decord seeks to wrong frames.
READERS: Mapping[Format, tuple[str, ...]] = {
    **dict.fromkeys(("jpeg", "png", "webp", "gif", "bmp"), ("pillow",)),
    **dict.fromkeys(("mp4", "webm"), ("decord", "pyav")),
    "avi": ("pyav",),
}
MAX_HEADER = 2**16
MAX_FRAMES = 2**24  # up to here float32, in which frames are chosen, knows every one
_CHUNK = 2**20

# What a child needs of the environment; keys and tokens stay with the parent.
_KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG")
# One thread and one arena: the child's memory is limited, and its neighbours need the cores.
_SET_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class _AnsweredError(Exception):
    """The child said no and is ready for the next job; `fault` names a broken limit."""

    def __init__(self, fault: str | None) -> None:
        super().__init__(fault)
        self.fault = fault


class _BrokenError(Exception):
    """The child died or talks nonsense: it has to be replaced."""


@dataclass(slots=True, eq=False)
class DecodeBudget:
    """How long children may still work for one request."""

    seconds: float = REQUEST_SECONDS


@dataclass(slots=True, kw_only=True, eq=False)
class Item:
    """Bytes to be opened, the readers that have not failed on them, the seconds left."""

    data: bytes = field(repr=False)
    sniffed: Sniffed
    param: str
    budget: DecodeBudget = field(default_factory=DecodeBudget)
    readers: tuple[str, ...] = field(init=False)
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        self.readers = READERS[self.sniffed.format]
        self.seconds = SECONDS[self.sniffed.kind]

    def error(self, why: str, fault: str) -> MediaError:
        """A `MediaError` about this item: `why` ends the sentence, `fault` ends the code."""
        kind = self.sniffed.kind
        return MediaError(self.param, f"the {NOUN[kind]} {why}", code=f"{kind}_{fault}")


@contextmanager
def _distrust() -> Iterator[None]:
    """Whatever goes wrong while a child is talked to, the child is broken."""
    try:
        yield
    except (EOFError, ConnectionError, ValueError, RecursionError, struct.error):
        raise _BrokenError from None


# One child -------------------------------------------------------------------------------------


class Child:
    """A running decoder and the two pipes to it. `_BrokenError` for anything it should not say."""

    def __init__(self, process: Process) -> None:
        self.process = process
        if process.stdin is None or process.stdout is None:
            raise _BrokenError
        self._stdin, self._stdout = process.stdin, process.stdout
        self._reading = asyncio.Lock()  # a child may be ended while a job still listens to it
        self.ending: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls) -> "Child":
        """Run `decode.py` as a program by its path: nothing else of litevl is imported.

        `UnavailableError` when the system has no process, memory or file descriptor for it.
        """
        kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        command = (sys.executable, "-P", "-B", decode.__file__)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env=kept | _SET_ENVIRONMENT,
                limit=_CHUNK,
                start_new_session=True,  # with it ends whatever it may have started
            )
        except OSError:
            raise UnavailableError("no decoder can be started at present: try again") from None
        return cls(process)

    @property
    def is_alive(self) -> bool:
        return self.process.returncode is None

    async def end(self) -> None:
        """Kill it and all that it started, and reap it."""
        if self.is_alive:  # of one that was reaped somebody else may have the number
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self._stdin.close()
        # `wait` waits for the end of the output too, which never comes while it is full, nor while
        # a process that fled from the session holds it.
        try:
            async with asyncio.timeout(DRAIN_SECONDS), self._reading:
                while await self._stdout.read(_CHUNK):
                    pass
        except TimeoutError:
            self.process._transport.close()  # type: ignore[attr-defined]  # nothing public does
        await self.process.wait()

    async def send(self, header: Mapping[str, object], data: bytes) -> None:
        with _distrust():
            self._stdin.write(decode.pack(header))
            for at in range(0, len(data), _CHUNK):  # a copy of all of it would keep the loop busy
                self._stdin.write(data[at : at + _CHUNK])
                await self._stdin.drain()

    async def receive(self) -> Mapping[str, Any]:
        """The next message's header; `_AnsweredError` if it says no."""
        async with self._reading:
            with _distrust():
                length = struct.unpack(">I", await self._stdout.readexactly(4))[0]
                if length > MAX_HEADER:
                    raise _BrokenError
                header = json.loads(await self._stdout.readexactly(length))
        if not isinstance(header, dict):
            raise _BrokenError
        if "failed" in header or "refused" in header:
            raise _AnsweredError(header.get("refused"))
        return header

    async def receive_frames(self, header: Mapping[str, Any], most: int) -> NDArray[np.uint8]:
        """The frames that a header announces, (n, height, width, 3), at most `most`."""
        number = _number(header, "frames", 1, most)
        height = _number(header, "height", 1, decode.MAX_PIXELS)
        width = _number(header, "width", 1, decode.MAX_PIXELS // height)
        if number > 1 and number * height * width * 3 > decode.BATCH_BYTES:
            raise _BrokenError
        frames = np.empty((number, height, width, 3), np.uint8)
        rest = frames.data.cast("B")
        while rest:
            async with self._reading:
                chunk = await self._stdout.read(min(len(rest), _CHUNK))
            if not chunk:
                raise _BrokenError
            rest[: len(chunk)] = chunk
            rest = rest[len(chunk) :]
        return frames


def _number(header: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = header.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _BrokenError
    return value


def _parse_probe(header: Mapping[str, Any], kind: MediaKind) -> Probe:
    fps = header.get("fps")
    if (
        not isinstance(fps, float)
        or not 0.0 <= fps <= decode.MAX_FPS
        or (kind == "video" and fps == 0.0)
    ):
        raise _BrokenError
    height = _number(header, "height", decode.MIN_SIDE, decode.MAX_PIXELS)
    return Probe(
        kind=kind,
        width=_number(header, "width", decode.MIN_SIDE, decode.MAX_PIXELS // height),
        height=height,
        num_frames=_number(header, "num_frames", 1, MAX_FRAMES),
        fps=fps,
    )


# The pool --------------------------------------------------------------------------------------

Ask = Callable[[Child, str, asyncio.Timeout], Awaitable[T]]


class Workers:
    """A small pool of decode children. They start when first needed; `close` ends them all."""

    def __init__(self, size: int | None = None) -> None:
        self._slots = asyncio.Semaphore(size or min(4, os.cpu_count() or 1))
        self._idle: list[Child] = []
        self._children: set[Child] = set()
        self._is_closed = False

    async def probe(self, item: Item) -> Probe:
        """Upright size, frames and rate. `MediaError` when unreadable or beyond a limit."""

        async def ask(child: Child, reader: str, timer: asyncio.Timeout) -> Probe:
            await child.send(_job("probe", reader, item), item.data)
            return _parse_probe(await child.receive(), item.sniffed.kind)

        return await self._try_readers(item, ask)

    async def decode(self, item: Item, indices: Sequence[int], sink: Sink) -> None:
        """Hand exactly these frames to `sink`, in this order, a bounded batch at a time.

        The item's clock stands still while `sink` is awaited. `MediaError` as for `probe`.
        """
        done = 0

        async def ask(child: Child, reader: str, timer: asyncio.Timeout) -> None:
            nonlocal done
            job = _job("decode", reader, item) | {"indices": list(indices[done:])}
            await child.send(job, item.data)
            while "done" not in (header := await child.receive()):
                frames = await child.receive_frames(header, most=len(indices) - done)
                done += len(frames)
                await _off_the_clock(timer, sink(frames))
            if done != len(indices):
                raise _BrokenError

        await self._try_readers(item, ask)

    async def close(self) -> None:
        """End every child, at work or not; later jobs meet `UnavailableError`."""
        self._is_closed = True
        self._idle.clear()
        await asyncio.gather(*(self._end(child) for child in tuple(self._children)))

    @property
    def pids(self) -> frozenset[int]:
        """Process ids of the children."""
        return frozenset(child.process.pid for child in self._children)

    async def _try_readers(self, item: Item, ask: Ask[T]) -> T:
        """Ask the first reader that works. All but the last get half of the time that is left."""
        is_late = False
        while item.readers and item.budget.seconds > 0.0:
            try:
                return await self._run(item, ask)
            except _AnsweredError as error:
                if error.fault is not None:
                    raise _limit_error(item, error.fault) from None
                is_late = False
            except _BrokenError:
                is_late = False
            except TimeoutError:
                is_late = True
            item.readers = item.readers[1:]
        if item.budget.seconds <= 0.0:
            raise item.error(
                f"takes the request beyond {REQUEST_SECONDS:.0f} s of decoding: send less",
                "too_large",
            )
        if is_late and item.sniffed.kind == "video":
            raise item.error(
                f"takes more than {SECONDS['video']:.0f} s to decode: send a shorter one",
                "too_long",
            )
        raise item.error(
            "cannot be decoded: the file is damaged, or its codec unknown", "parse_error"
        )

    async def _run(self, item: Item, ask: Ask[T]) -> T:
        """One reader's attempt in one child; the seconds it took are the item's."""
        limit = min(item.seconds / min(2, len(item.readers)), item.budget.seconds)
        async with self._lease() as child, asyncio.timeout(limit) as timer:
            try:
                return await ask(child, item.readers[0], timer)
            finally:
                left = (timer.when() or 0.0) - asyncio.get_running_loop().time()
                spent = limit - max(0.0, left)
                item.seconds -= spent
                item.budget.seconds -= spent

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[Child]:
        """A child that nobody else talks to. It goes back only if it has answered to the end.

        `UnavailableError` when none becomes free in time.
        """
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise UnavailableError("all decoders are busy: try again later") from None
        try:
            child = await self._take()
            is_healthy = False
            try:
                yield child
                is_healthy = True
            except _AnsweredError:
                is_healthy = True
                raise
            finally:
                if is_healthy and child in self._children:
                    self._idle.append(child)
                else:
                    await self._end(child)
        finally:
            self._slots.release()

    async def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.is_alive:
                return child
            await self._end(child)
        if self._is_closed:
            raise UnavailableError("the server is shutting down: ask again later")
        child = await Child.start()
        self._children.add(child)
        return child

    async def _end(self, child: Child) -> None:
        """Kill and reap, to the end even if whoever waits for it is cancelled."""
        child.ending = child.ending or asyncio.create_task(self._reap(child))
        await asyncio.shield(child.ending)

    async def _reap(self, child: Child) -> None:
        await child.end()
        self._children.discard(child)


async def _off_the_clock(timer: asyncio.Timeout, work: Awaitable[None]) -> None:
    loop = asyncio.get_running_loop()
    left = (timer.when() or 0.0) - loop.time()
    timer.reschedule(None)
    await work
    timer.reschedule(loop.time() + left)


def _job(op: str, reader: str, item: Item) -> dict[str, object]:
    return {"op": op, "reader": reader, "format": item.sniffed.format, "size": len(item.data)}


def _limit_error(item: Item, fault: str) -> MediaError:
    """Which limit the child found broken. A clip has one code for shapes that no model can see."""
    small = "too_small" if item.sniffed.kind == "image" else "parse_error"
    if fault == "too_large":
        return item.error(f"has more than {decode.MAX_PIXELS // 10**6} megapixels", "too_large")
    if fault == "aspect":
        return item.error(f"is more than {decode.MAX_ASPECT} times as long as it is wide", small)
    return item.error(f"has a side shorter than {decode.MIN_SIDE} pixels", small)
