"""A server that is short of files, of disk or of memory answers what it can, and recovers.

A real `litevl serve` of the demo under limits of its own: what it cannot have, the operating system
refuses.
"""

import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from fakes import assert_error, running
from litevl.api import bodies, serving
from litevl.api.wire import Limits
from litevl.config import Config
from litevl.errors import MediaError, UnavailableError
from litevl.health import Health
from litevl.machine import Memory
from litevl.media.fetch import Fetcher
from litevl.media.local import LocalFiles
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import StepOutput
from live import KEY, ROOT, LiveServer, serve
from media_samples import data_url, png, reference
from rig import Rig, greedy
from tiny_models import make_checkpoint

FILES = 64
CLIENTS = 300  # each of which takes one
BODIES, BODY_BYTES = 20, 32 * 2**20  # two thirds more than the budget of 384 MiB
ROOM = 3 * 2**29  # of memory, for them and for what is asked beside them
CPU_S = 5.0  # for all that is asked here; asyncio alone would use all there is
PATIENCE = 120.0
fresh = count(10**7)

# No file can be written anywhere, and the log goes where there never is room.
POOR = f'ulimit -n {FILES}; ulimit -f 0; exec "$@" 2>/dev/full'


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("poor")
    nowhere = dict.fromkeys(("HOME", "TMPDIR"), "/nowhere")
    networks = ("--media-networks", "127.0.0.0/8,::1/128")
    with serve(*networks, folder=folder, shell=POOR, LITEVL_API_KEY=KEY, **nowhere) as live:
        yield live


def picture() -> str:
    """One that nobody has seen: what follows the end of a JPEG belongs to no picture."""
    sample = (ROOT / "litevl" / "demo" / "sample.jpg").read_bytes()
    return data_url(sample + b"%d" % next(fresh))


def clip() -> str:
    unused = b"\0\0\0\x10free%d" % next(fresh)
    return data_url((ROOT / "litevl" / "demo" / "sample.mp4").read_bytes() + unused, "video/mp4")


Ask = tuple[str, Callable[[], str]]  # a kind of part and its URL
EVERYTHING: dict[str, Ask] = {
    "text": ("", str),
    "picture": ("image_url", picture),
    "clip": ("video_url", clip),
    "download": ("image_url", lambda: "http://localhost:1/"),  # nobody is there
}


def ask(live: LiveServer, what: str) -> int:
    kind, url = EVERYTHING[what]
    content: list[dict[str, Any]] = [{"type": "text", "text": "What is it?"}]
    if kind:
        content.insert(0, {"type": kind, kind: {"url": url()}})
    answer = httpx.post(
        f"{live.base_url}/chat/completions",
        json={"messages": [{"role": "user", "content": content}], "max_tokens": 2},
        headers={"x-api-key": KEY},
        timeout=PATIENCE,
        trust_env=False,
    )
    return answer.status_code


def ask_everything(live: LiveServer) -> dict[str, int]:
    """All at once."""
    with ThreadPoolExecutor(len(EVERYTHING)) as pool:
        statuses = pool.map(lambda what: ask(live, what), EVERYTHING)
        return dict(zip(EVERYTHING, statuses, strict=True))


ALL_WELL = {"text": 200, "picture": 200, "clip": 200, "download": 400}


def health(live: LiveServer) -> int:
    return httpx.get(f"{live.address}/health", timeout=PATIENCE, trust_env=False).status_code


@contextmanager
def connected(live: LiveServer, number: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        address = ("127.0.0.1", live.port)
        connections = (socket.create_connection(address, PATIENCE) for _ in range(number))
        yield [stack.enter_context(each) for each in connections]


def wait_for_files(process: psutil.Process, most: int) -> None:
    """Until no more are open: what a client closes, the server hears of a moment later."""
    while process.num_fds() > most:
        pass


def head(num_bytes: int) -> bytes:
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: x", f"x-api-key: {KEY}")
    return "\r\n".join((*lines, f"content-length: {num_bytes}", "", "")).encode()


# Files -----------------------------------------------------------------------------------------


def test_more_silent_clients_than_files_keep_nobody_out_and_leave_nothing(
    poor: LiveServer,
) -> None:
    assert ask_everything(poor) == ALL_WELL
    process = psutil.Process(poor.process.pid)
    files, cpu = process.num_fds(), sum(process.cpu_times()[:2])
    children = len(process.children())
    for _ in range(3):
        with connected(poor, CLIENTS):
            assert ask_everything(poor) == ALL_WELL
            assert health(poor) == 200
    assert sum(process.cpu_times()[:2]) - cpu < CPU_S
    assert ask_everything(poor) == ALL_WELL
    started = len(process.children()) - children
    wait_for_files(process, files + 3 * started)
    assert psutil.STATUS_ZOMBIE not in [each.status() for each in process.children()]


def test_who_comes_when_all_connections_have_work_is_turned_away_until_one_ends(
    poor: LiveServer,
) -> None:
    process = psutil.Process(poor.process.pid)
    files = process.num_fds()
    with connected(poor, FILES) as at_work:
        for each in at_work:
            with suppress(OSError):  # it was turned away
                each.sendall(head(100) + b"{")
        with suppress(httpx.TransportError):  # closed without a word
            assert health(poor) == 503
    wait_for_files(process, files)
    assert health(poor) == 200
    assert ask_everything(poor) == ALL_WELL


def test_the_server_has_fewer_connections_where_it_may_open_fewer_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: None)
    for files, connections in ((10**6, 1024), (1792, 1024), (1024, 409), (64, 25)):
        monkeypatch.setattr(resource, "getrlimit", lambda what, n=files: (n, n))
        assert serving.raise_file_limit(Limits()).connections == connections


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open none."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as free:
        next_file = free.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_file, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_spare_file_that_was_lost_comes_back_and_without_it_nobody_asks_again_at_once() -> None:
    with serving.Listener(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener._spare.close()  # a thread was quicker
        with socket.create_connection(listener.getsockname(), PATIENCE) as client:
            with no_more_files(), pytest.raises(OSError, match="Too many open files"):
                listener.accept()
            listener.accept()[0].close()
            assert client.recv(1) == b"" and not listener._spare.closed


def test_whom_there_is_no_file_for_is_turned_away_at_once_and_the_next_one_let_in() -> None:
    told = list[str]()
    with serving.Listener(socket.AF_INET) as listener:
        listener.note = lambda why, request: told.append(why)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname(), PATIENCE) as client:
            with no_more_files(), pytest.raises(BlockingIOError):
                listener.accept()
            assert (client.recv(1), told) == (b"", ["too_many_connections"])
        with socket.create_connection(listener.getsockname(), PATIENCE):
            listener.accept()[0].close()


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_download_for_which_there_is_no_file_may_be_asked_for_again(host: str) -> None:
    fetcher = Fetcher(Config(media_networks=("127.0.0.0/8", "::1/128")).media_ip_networks)
    with pytest.raises(MediaError):  # nobody is there, and a thread looked the name up
        await fetcher.fetch(reference(f"http://{host}:1/"))
    with no_more_files(), pytest.raises(UnavailableError):
        await fetcher.fetch(reference(f"http://{host}:1/"))
    fetcher.close()


def test_a_local_file_that_cannot_be_opened_now_may_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.ENFILE, "Too many open files in system")

    (tmp_path / "a.png").write_bytes(png())
    files = LocalFiles(str(tmp_path))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnavailableError):
        files.read(reference(f"file://{tmp_path}/a.png"))


# Disk ------------------------------------------------------------------------------------------


def test_where_nothing_can_be_written_texts_pictures_and_clips_are_answered(
    poor: LiveServer,
) -> None:
    assert ask_everything(poor) == ALL_WELL
    decoders = psutil.Process(poor.process.pid).children()
    for each in decoders:
        each.kill()
    psutil.wait_procs(decoders)  # others can start
    assert ask_everything(poor) == ALL_WELL


# Memory ----------------------------------------------------------------------------------------


def test_the_budget_of_bodies_answers_before_there_is_no_memory(poor: LiveServer) -> None:
    process = psutil.Process(poor.process.pid)
    before = process.rlimit(resource.RLIMIT_AS)
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + ROOM, before[1]))
    content = bytes(BODY_BYTES)

    def upload(connection: socket.socket) -> None:
        connection.sendall(head(BODY_BYTES + 1) + content)

    def end(connection: socket.socket) -> bytes:
        connection.sendall(b"x")
        return connection.recv(12)

    with connected(poor, BODIES) as uploads, ThreadPoolExecutor(BODIES) as pool:
        list(pool.map(upload, uploads))
        assert health(poor) == 200
        assert ask_everything(poor) == ALL_WELL
        statuses = sorted(pool.map(end, uploads))
    process.rlimit(resource.RLIMIT_AS, before)
    assert set(statuses) == {b"HTTP/1.1 400", b"HTTP/1.1 503"}  # it is no JSON
    assert statuses.count(b"HTTP/1.1 503") >= 6
    assert ask_everything(poor) == ALL_WELL


@pytest.mark.parametrize(("gibibytes", "mebibytes"), [(1, 96), (2, 128), (4, 256), (64, 384)])
def test_there_may_be_fewer_bodies_where_there_is_less_memory(
    gibibytes: int, mebibytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = gibibytes * 2**30
    monkeypatch.setattr(bodies, "memory", lambda: Memory(total=total, free=total))
    assert bodies.bytes_that_fit(max_body_size=96 * 2**20) == mebibytes * 2**20


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_request_for_which_there_is_no_memory_or_thread_is_told_to_come_again(
    error: Exception,
) -> None:
    with running() as rig:
        rig.preprocessor.error = error
        answer = rig.chat()
        assert "memory" in assert_error(answer, 503, "server_is_overloaded")
        assert answer.headers["retry-after"]
        rig.preprocessor.error = None
        assert rig.chat().status_code == 200


def test_an_engine_that_can_make_no_more_kernels_is_dead_and_not_merely_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("could not create a primitive")

    rig = Rig(make_checkpoint("qwen3_vl", tmp_path))
    engine, _ = rig.engine()
    outputs: list[StepOutput] = []
    monkeypatch.setattr(QwenVL, "forward", fail)
    engine.add(greedy(rig.image_prompt([5]), "a", 2))
    engine.start(outputs.extend)
    engine._thread.join(PATIENCE)
    assert engine.health() is Health.DEAD
    assert [each.request_id for each in outputs if each.error] == ["a"]
