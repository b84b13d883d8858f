"""300 slow clients of four kinds beside a good one: who is answered, who is closed, and when.

`python -m benchmarks.slow_clients`. For 90 s (`--quick`: 25), against a server without a model and
with litevl's own deadlines: 100 clients that say nothing, 100 whose head drips, 50 whose body
drips, 50 that never read their answers; each that is closed comes again. A good client asks once a
second, and `/health` as often. Then all leave, and what they left behind is counted.
"""

import json
import multiprocessing
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.bodies import serve
from benchmarks.program import finish, parser, table, tell

NUMBERS = {"silent": 100, "head": 100, "body": 50, "reader": 50}
# Seconds after which each is closed at the latest, by the wire's limits, and a second of grace.
# A reader's begins when the kernel takes no more.
DEADLINES = {"silent": 11.0, "head": 11.0, "body": 11.0, "reader": 71.0}
DROP_S = 1.0  # between two drops
QUICK_S, WHOLE_S = 25.0, 90.0
AFTER_S = 5.0

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
OPENINGS = {
    "silent": b"",
    "head": b"GET /health HTTP/1.1\r\nhost: x\r\na: ",
    "body": CHAT + b"content-length: 100000\r\n\r\n{",
    # More than the kernel takes for one that does not read.
    "reader": b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 100,
}


@dataclass(eq=False)
class Slow:
    """A client that keeps the server waiting, and comes again when it is closed."""

    kind: str
    port: int
    lives: list[float] = field(default_factory=list)  # seconds until the server closed it
    connection: socket.socket = field(default_factory=socket.socket)
    began: float = 0.0

    def come(self, watched: selectors.BaseSelector) -> None:
        self.connection = socket.socket()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.connection.connect(("127.0.0.1", self.port))
        self.connection.sendall(OPENINGS[self.kind])
        self.connection.setblocking(False)
        self.began = time.monotonic()
        if self.kind != "reader":  # it does not look, either
            watched.register(self.connection, selectors.EVENT_READ, self)

    def drip(self) -> bool:
        """Send a drop; whether the server has closed."""
        try:
            if self.kind in ("head", "body"):
                self.connection.send(b"a")
            elif self.kind == "reader":
                return bool(self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    def end(self, watched: selectors.BaseSelector) -> None:
        self.lives.append(time.monotonic() - self.began)
        if self.kind != "reader":
            watched.unregister(self.connection)
        self.connection.close()


def hold(port: int, seconds: float) -> dict[str, list[float]]:
    """Be all the slow clients for so long; how long each was let live."""
    clients = [Slow(kind, port) for kind, number in NUMBERS.items() for _ in range(number)]
    watched = selectors.DefaultSelector()
    for each in clients:
        each.come(watched)
    end, next_drop = time.monotonic() + seconds, time.monotonic() + DROP_S
    while (now := time.monotonic()) < end:
        closed = {key.data for key, _ in watched.select(0.1) if _is_over(key.data)}
        if now >= next_drop:
            next_drop += DROP_S
            closed |= {each for each in clients if each.drip()}
        for each in closed:
            each.end(watched)
            each.come(watched)
    for each in clients:
        each.connection.close()
    return {kind: [s for c in clients if c.kind == kind for s in c.lives] for kind in NUMBERS}


def _is_over(client: Slow) -> bool:
    try:
        return not client.connection.recv(2**16)
    except BlockingIOError:
        return False
    except OSError:
        return True


def be_good(port: int, stop: Any, told: Any) -> None:
    """Ask for an answer and for the server's health once a second, on connections of their own."""
    good: list[float] = []
    health: list[float] = []
    failed = 0
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}).encode()
    question = CHAT + b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    state = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    told.send("here")
    while not stop.wait(1.0):
        for request, times in ((question, good), (state, health)):
            began = time.perf_counter()
            try:
                with socket.create_connection(("127.0.0.1", port), 10) as connection:
                    connection.sendall(request)
                    answer = b"".join(_pieces(connection))
            except OSError:
                answer = b""
            times.append((time.perf_counter() - began) * 1000)
            failed += not answer.startswith(b"HTTP/1.1 200 ")
    told.send((good, health, failed))


def _pieces(connection: socket.socket) -> Iterator[bytes]:
    while piece := connection.recv(2**16):
        yield piece


def quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"p50_ms": ordered[len(ordered) // 2], "p99_ms": ordered[len(ordered) * 99 // 100]}


def beside(port: int, seconds: float, *, with_slow: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the good client met, and how long the slow ones lived."""
    spawn = multiprocessing.get_context("spawn")
    stop, (here, there) = spawn.Event(), spawn.Pipe()
    good = spawn.Process(target=be_good, args=(port, stop, there))
    good.start()
    here.recv()  # on a busy machine it takes its time to begin
    lives: dict[str, list[float]] = {}
    if with_slow:
        lives = hold(port, seconds)
    else:
        time.sleep(seconds)
    stop.set()
    answers, health, failed = here.recv()
    good.join()
    asked = len(answers) + len(health)
    return {
        "asked": asked,
        "answered": asked - failed,
        "answer": quantiles(answers),
        "health": quantiles(health),
    }, lives


def main(argv: list[str] | None = None) -> None:
    args = parser(__doc__).parse_args(argv)
    seconds = QUICK_S if args.quick else WHOLE_S
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(target=serve, args=(there,))
    server.start()
    port = here.recv()
    process = psutil.Process(server.pid)
    tell("the good client alone ...")
    alone, _ = beside(port, seconds / 6, with_slow=False)
    before = process.num_fds(), process.memory_info().rss
    tell(f"beside 300 slow ones, {seconds:.0f} s ...")
    good, lives = beside(port, seconds, with_slow=True)
    time.sleep(AFTER_S)
    left = {
        "files": process.num_fds() - before[0],
        "rss_mib": (process.memory_info().rss - before[1]) / 2**20,
    }
    server.terminate()
    server.join()
    closed = {
        kind: {
            "closed": len(each),
            "longest_s": max(each, default=0.0),
            "late": sum(life > DEADLINES[kind] for life in each),
        }
        for kind, each in lives.items()
    }
    table(
        ("client", "closed", "after at most, s", "late"),
        [(k, *v.values()) for k, v in closed.items()],
    )
    tell(
        f"good: {good['answered']} of {good['asked']}; health p99 {good['health']['p99_ms']:.0f} ms"
    )
    finish(
        "slow_clients", {"alone": alone, "beside": good, "slow": closed, "left": left}, args.threads
    )


if __name__ == "__main__":
    main()
