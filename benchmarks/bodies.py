"""A 24 MB body beside a stream: how long the stream's reader waits for a frame, with and without.

`python -m benchmarks.bodies`. A server without a model gives one client a frame every other
millisecond; another process sends it questions about an 18 MB picture, which litevl's own loader
reads and a child decodes. The same stream without them is the peer, in the same run. On a busy
machine gaps are mostly the machine's, so this is told too: the longest time for which reading the
body keeps the interpreter from other threads, in processor time, which neighbours do not lengthen.
"""

import base64
import io
import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.null_backend import NullEngine, null_backend
from benchmarks.program import finish, parser, table, tell
from litevl.api.json_body import parse_json
from litevl.api.service import Service
from litevl.api.serving import Server
from litevl.config import Config
from litevl.media.loader import MediaLoader
from litevl.media.sources import parse_data_url
from litevl.sequence import MediaKind, MediaOptions, MediaPlan, MediaRef, PlannedMedia, Probe

BUDGET_MS = 50
FRAME_S = 0.002
SIDE = 2500  # pixels of noise, three bytes each, which no format makes smaller
SEEN = 56
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: "


# The server's process --------------------------------------------------------------------------


class Metronome:
    """What paces the engine."""

    def expect(self, count: int) -> None:
        time.sleep(FRAME_S)


class Corner:
    """A planner that has the model see one corner of everything."""

    def plan(self, probe: Probe, options: MediaOptions, param: str) -> MediaPlan:
        return MediaPlan(frame_indices=(0,), width=SEEN, height=SEEN)

    def check(self, media: Many[PlannedMedia]) -> None:
        pass

    def resize(
        self, frames: NDArray[np.uint8], kind: MediaKind, plan: MediaPlan
    ) -> NDArray[np.uint8]:
        return frames[:, : plan.height, : plan.width]


def serve(port: Connection) -> None:
    """Listen on a free port, tell it, and serve until killed."""
    config = Config(no_api_key=True)
    service = Service(config)
    pace: Any = Metronome()
    backend = null_backend(NullEngine(pace))
    service.attach(replace(backend, media=MediaLoader(Corner(), config)))
    listener = socket.create_server(("127.0.0.1", 0))
    port.send(listener.getsockname()[1])
    Server(config, service).run(sockets=[listener])


# Its clients -----------------------------------------------------------------------------------


def question(index: int) -> bytes:
    """A body about a picture that was never sent before: nothing is cached."""
    return json.dumps(
        {
            "max_tokens": 1,
            "messages": [{"role": "user", "content": [{"type": "image", "image": picture(index)}]}],
        }
    ).encode()


def picture(index: int) -> str:
    noise = np.random.default_rng(index).integers(0, 256, (SIDE * 24 // 25, SIDE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "BMP")
    return "data:image/bmp;base64," + base64.b64encode(file.getvalue()).decode()


def ask(port: int, count: int, ready: Connection) -> None:
    """Send so many questions, one after another, when told to, and tell the end."""
    questions = [question(index) for index in range(count)]
    ready.send(len(questions[0]))
    ready.recv()
    for each in questions:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"{HEAD}{len(each)}\r\n\r\n".encode() + each)
            answer = b"".join(iter(partial(connection.recv, 2**16), b""))
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"a question was refused: {answer[:200]!r}")
    ready.send(None)


def gaps(stream: socket.socket, until: Callable[[], bool]) -> list[float]:
    """Milliseconds between one arrival and the next, until something has happened."""
    found, last = [], time.perf_counter()
    while not until():
        if not stream.recv(2**16):
            raise RuntimeError("the stream broke off")
        now = time.perf_counter()
        found.append((now - last) * 1000)
        last = now
    return found


def summary(found: list[float]) -> dict[str, float]:
    worst = sorted(found, reverse=True)
    return {"max_ms": worst[0], "p99_ms": worst[len(worst) // 100], "frames": len(worst)}


# The interpreter -------------------------------------------------------------------------------


def longest_hold(work: Callable[[], object]) -> float:
    """Milliseconds of this thread's processor time for which another that wants to cannot run."""
    clock = time.pthread_getcpuclockid(threading.get_ident())
    found, is_over = [0.0], threading.Event()

    def watch() -> None:
        last = time.clock_gettime(clock)
        while not is_over.is_set():
            time.sleep(0)
            now = time.clock_gettime(clock)
            found.append((now - last) * 1000)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    is_over.set()
    watcher.join()
    return max(found)


def read(body: bytes) -> None:
    """All that litevl does with a body before a child has its picture."""
    messages: Any = parse_json(body).value["messages"]
    url = messages[0]["content"][0]["image"]
    parse_data_url(MediaRef(declared="image", url=url, param="p"))


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__).parse_args(argv)
    count = 3 if args.quick else 20
    spawn = multiprocessing.get_context("spawn")
    port_end, server_end = spawn.Pipe()
    server = spawn.Process(target=serve, args=(server_end,))
    server.start()
    port = port_end.recv()
    here, there = spawn.Pipe()
    asker = spawn.Process(target=ask, args=(port, count, there))
    asker.start()
    size = here.recv()
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", port)) as stream:
        stream.sendall(f"{HEAD}{len(body)}\r\n\r\n".encode() + body)
        stream.recv(2**16)
        end = time.monotonic() + count / 4
        tell("the stream alone ...")
        alone = summary(gaps(stream, lambda: time.monotonic() > end))
        here.send(None)
        tell(f"beside {count} bodies ...")
        beside = summary(gaps(stream, here.poll))
    server.terminate()
    for each in (asker, server):
        each.join()
    example = question(0)
    held = min(longest_hold(partial(read, example)) for _ in range(5))  # the least disturbed one
    rows = [(name, *found.values()) for name, found in (("alone", alone), ("beside", beside))]
    table(("stream", "longest gap, ms", "p99", "frames"), rows)
    tell(f"the interpreter is held for {held:.1f} ms at most")
    figures = {"budget_ms": BUDGET_MS, "body_bytes": size, "bodies": count, "held_cpu_ms": held}
    finish("bodies", {**figures, "alone": alone, "beside": beside}, args.threads)


if __name__ == "__main__":
    main()
