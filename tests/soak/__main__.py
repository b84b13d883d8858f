"""Hours of mixed clients against a real server on loopback: `make soak SECONDS=600`.

Starts its own server (`server.py`) with the demo model, asks at a steady rate, lets everything
come to rest, and holds what the server and the system then count against what they counted before.
The last line is one JSON object; the exit code is 0 if nothing was lost and no answer was wrong.
`--leak NAME` has the server lose something on purpose: then it must be 1.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from soak.clients import Clients, picture
from soak.figures import Snapshot, losses, slope
from soak.server import LEAKS
from soak.wire import KEY

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    *("--port", "0", "--media-networks", "127.0.0.0/8", "--max-model-len", "1024"),
    # Few blocks and places: prompts are evicted, answers preempted, requests turned away.
    *("--num-blocks", "80", "--max-num-seqs", "8", "--max-num-queued-reqs", "24"),
)
READY_S = 600.0  # until the server is up, on a machine that has much else to do
MAX_CLIENTS = 100  # at once
WARM_UP = 8  # of each kind, before anything is counted


@dataclass
class Server:
    """The server's process and what can be seen of it."""

    process: asyncio.subprocess.Process
    port: int
    counts_file: Path
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB
    children_memory: list[float] = field(default_factory=list)

    @classmethod
    async def start(cls, folder: Path, leak: str, log: IO[bytes]) -> "Server":
        file = folder / "counts.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "soak.server", str(file), leak, *SETTINGS),
            cwd=ROOT,
            env=os.environ | {"LITEVL_API_KEY": KEY, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=log,
        )
        return cls(process, 0, file)

    async def wait_until_ready(self, log: Path) -> None:
        async with asyncio.timeout(READY_S):
            while not self.port:
                await asyncio.sleep(0.5)
                if self.process.returncode is not None:
                    raise RuntimeError("the server ended before it was ready; see its log")
                self.port = _port(log.read_text(encoding="utf-8"))

    async def snapshot(self) -> Snapshot:
        self.counts_file.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(READY_S):
            while not self.counts_file.exists():
                await asyncio.sleep(0.2)
        told = json.loads(self.counts_file.read_text(encoding="utf-8"))
        return Snapshot.of(self.process.pid, told)

    async def watch(self, every: float) -> None:
        """Note memory until cancelled."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(every)
            seen = Snapshot.of(self.process.pid, {})
            self.memory.append((time.monotonic() - began, seen.memory_mib))
            self.children_memory.append(seen.children_mib)

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        return await self.process.wait()


def _port(log: str) -> int:
    """Of the banner, once it is whole."""
    lines = [line for line in log.splitlines() if line.strip().startswith("local")]
    return int(lines[0].rsplit(":", 1)[1].removesuffix("/v1")) if " -d @" in log and lines else 0


async def serve_sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A host of pictures that hangs, breaks off or answers 404, as its path says."""
    try:
        line = await reader.readline()
        await reader.readuntil(b"\r\n\r\n")
        body = picture(7)
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        if b"/hang" in line:
            await reader.read(-1)
        elif b"/break" in line:
            writer.write(head.encode() + body[:20])
        elif b"/gone" in line:
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        else:
            writer.write(head.encode() + body)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def warm_up(clients: Clients) -> None:
    """Every pool and child is started, every good answer known, before anything is counted."""
    await clients.learn()
    kinds = [kind for kind in ("good", "abort", "bad", "over", "dead") for _ in range(WARM_UP)]
    await asyncio.gather(*(clients.one(kind) for kind in kinds))
    clients.outcomes.clear()
    clients.wrong.clear()


async def ask_for(
    clients: Clients, seconds: float, rate: float, most: int
) -> set[asyncio.Task[None]]:
    """Clients come at chance, `rate` a second in the mean; those that are not done yet."""
    ends = time.monotonic() + seconds
    under_way: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    for number in range(most):
        due += clients.rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if time.monotonic() > ends:
            break
        while len(under_way) >= MAX_CLIENTS:
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(clients.one(clients.draw()), name=str(number))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    return under_way


async def soak(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    sink = await asyncio.start_server(serve_sink, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{sink.sockets[0].getsockname()[1]}"
    with Path(args.log or folder / "server.log").open("wb") as log:
        server = await Server.start(folder, args.leak, log)
        try:
            await server.wait_until_ready(Path(log.name))
            closed = f"http://127.0.0.1:{_closed_port()}"
            clients = Clients(server.port, url, closed, random.Random(args.seed))
            await warm_up(clients)
            await asyncio.sleep(args.idle)
            before = await server.snapshot()
            watching = asyncio.create_task(server.watch(max(1.0, min(10.0, args.seconds / 120))))
            began = time.monotonic()
            under_way = await ask_for(clients, args.seconds, args.rate, args.requests)
            watching.cancel()  # a server that nobody asks would hide in a flat line what it loses
            await asyncio.gather(*under_way)
            took = time.monotonic() - began
            await asyncio.sleep(args.idle)
            after = await server.snapshot()
        finally:
            code = await server.stop()
            sink.close()
    return report(args, clients, server, before, after) | {"seconds": round(took), "exit": code}


def report(
    args: argparse.Namespace, clients: Clients, server: Server, before: Snapshot, after: Snapshot
) -> dict[str, object]:
    lost = losses(before, after)
    growth = slope(server.memory)
    if growth.is_leak:
        lost["memory_mib_per_hour"] = growth.mib_per_hour
    outcomes = clients.outcomes
    return {
        "benchmark": "soak",
        "requests": outcomes.total(),
        "rate": args.rate,
        "leak_planted": args.leak,
        "right": outcomes["good: right"],
        "turned_away": sum(n for name, n in outcomes.items() if "turned away" in name),
        "wrong_answers": outcomes["good: wrong answer"],
        "failed": sum(n for name, n in outcomes.items() if "failed" in name),
        "lost": lost,
        "memory": growth.told(),
        "children_mib": [
            round(each)
            for each in server.children_memory[:: max(1, len(server.children_memory) // 8)]
        ],
        "cpu_seconds": round(after.cpu_seconds - before.cpu_seconds),
        "before": before.told(),
        "after": after.told(),
        "outcomes": dict(sorted(outcomes.items())),
        "complaints": clients.wrong[:10],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second")
    parser.add_argument("--requests", type=int, default=100_000, help="at most")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of rest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leak", choices=("none", *LEAKS), default="none")
    parser.add_argument("--log", help="the server's log (default: not kept)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(soak(args, Path(folder)))
    is_good = not found["lost"] and not found["wrong_answers"] and not found["failed"]
    print(json.dumps({**found, "passed": is_good}), flush=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
