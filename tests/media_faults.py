"""All hostile media against a real `litevl serve` with the demo model.

`make faults` runs it (with a number N behind it: only each Nth case). Each line tells figures, and
it exits 1 if anything was not as it must be: an answer other than 200 or 400, one that came late, a
child left over or that opened something, memory that stays, a good request answered otherwise than
before. `test_hostile_media.py` asks a sample in the same way. Load goes to a server of its own on
loopback, and to nobody else.
"""

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx
import psutil

from hostile_clips import clips, hostile_clips
from hostile_pictures import Case, data_url, pictures, scans, seeds, twins
from live import KEY, ROOT, serve

LIMITS = {"image": 34.0, "video": 64.0}  # seconds: to decode and to kill, behind another such
GROWTH = 2**20  # bytes that a hundred refused requests may leave behind
PEAK = 768 * 2**20  # bytes beyond where it began: decoded media kept, four pictures of 40 MP
CLIENTS = 4
ALLOWED_LINKS = ("pipe:", "/dev/null")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case; `complaints` say what was wrong with it."""

    case: Case
    status: int
    seconds: float
    complaints: tuple[str, ...]


def ask(client: httpx.Client, case: Case) -> Outcome:
    """Send one part with a question, and look at the answer."""
    content = [case.part, {"type": "text", "text": "?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}
    began = time.monotonic()
    try:
        answer = client.post("/chat/completions", json=body)
    except httpx.HTTPError as error:
        return Outcome(case, 0, _since(began), (repr(error),))
    seconds = _since(began)
    complaints = list(_complaints(case, answer))
    if seconds > LIMITS[case.kind]:
        complaints.append(f"took {seconds:.1f} s")
    return Outcome(case, answer.status_code, seconds, tuple(complaints))


def _since(began: float) -> float:
    return time.monotonic() - began


def _complaints(case: Case, answer: httpx.Response) -> Iterator[str]:
    status = answer.status_code
    if status not in (200, 400):
        yield f"status {status}"
    elif case.must_be not in (None, status):
        yield f"status {status}, not {case.must_be}: {answer.text[:200]}"
    if status == 200:
        return
    error = answer.json().get("error", {})
    if set(error) != {"message", "type", "param", "code"}:
        yield "not our error"
    elif not str(error["param"]).startswith("messages[0].content[0]"):
        yield f"blames {error['param']}"
    elif any(
        word in error["message"] for word in ("0x", "object at", "Error", "127.0.0.1", "/etc")
    ):
        yield f"tells too much: {error['message']}"


@contextmanager
def client_of(base_url: str) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=base_url, headers=headers, timeout=120, trust_env=False) as client:
        yield client


class Watch(threading.Thread):
    """Looks at the server and its children all the time: memory, and what the children open."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="watch", daemon=True)
        self.server = psutil.Process(pid)
        self.peak = self.child_peak = 0
        self.opened: set[str] = set()
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self.server.memory_info().rss)
            for child in self.server.children():
                try:
                    self.child_peak = max(self.child_peak, child.memory_info().rss)
                    self._look_at(child.pid)
                except (psutil.Error, OSError):
                    continue  # it ended meanwhile

    def _look_at(self, pid: int) -> None:
        """Only one that is confined, which it tells by its limit, may be held to it."""
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="utf-8")
        if f"{'Max open files':<26}0 " not in limits:
            return
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if not target.startswith(ALLOWED_LINKS):
                self.opened.add(target)

    def end(self) -> None:
        self._ended.set()
        self.join()

    def children(self) -> list[psutil.Process]:
        found: list[psutil.Process] = self.server.children(recursive=True)
        return found

    @property
    def memory(self) -> int:
        return int(self.server.memory_info().rss)


class Sink(threading.Thread):
    """A server that nobody may come to."""

    def __init__(self) -> None:
        super().__init__(name="sink", daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.hits = 0

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.hits += 1
            connection.close()


@dataclass
class Report:
    """Figures as they come, and what went wrong."""

    complaints: list[str] = field(default_factory=list)

    def tell(self, what: str, figures: Mapping[str, object]) -> None:
        text = ", ".join(f"{name} {value}" for name, value in figures.items())
        print(f"{what}: {text}", flush=True)

    def must(self, is_so: bool, complaint: str) -> None:
        if not is_so:
            self.complaints.append(complaint)
            print(f"  WRONG {complaint}", flush=True)


def send_all(base_url: str, cases: Iterable[Case], report: Report) -> list[Outcome]:
    """All cases by a few clients at the same time."""
    outcomes = []
    with client_of(base_url) as client, ThreadPoolExecutor(CLIENTS) as threads:
        for outcome in threads.map(lambda case: ask(client, case), cases):
            outcomes.append(outcome)
            for complaint in outcome.complaints:
                report.must(False, f"{outcome.case.name}: {complaint}")
    return outcomes


def corpus(
    what: Literal["pictures", "clips"], url: str, cases: list[Case], watch: Watch, report: Report
) -> None:
    """Send all, then what was refused once more: it must leave nothing behind."""
    before = watch.memory
    watch.peak = watch.child_peak = 0
    outcomes = send_all(url, cases, report)
    counts = Counter(outcome.status for outcome in outcomes)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    refused = [o.case for o in outcomes if o.status == 400 and len(o.case.url) < 10**6]
    settled = watch.memory
    send_all(url, refused, report)
    growth = (watch.memory - settled) * 100 // max(1, len(refused))
    report.must(growth <= GROWTH, f"{what}: {growth} bytes stay of a hundred refused")
    report.must(watch.peak - before <= PEAK, f"{what}: the server grew by {watch.peak - before}")
    report.tell(
        f"media {what}",
        {
            "sent": len(outcomes),
            "200": counts[200],
            "400": counts[400],
            "others": len(outcomes) - counts[200] - counts[400],
            "slowest": f"{slowest.seconds:.1f} s ({slowest.case.name})",
            "server's peak": f"+{(watch.peak - before) >> 20} MiB",
            "a child's peak": f"{watch.child_peak >> 20} MiB",
            "left by 100 refused": f"{growth / 2**10:.0f} KiB of {len(refused)}",
        },
    )


def twins_apart(url: str, report: Report, number: int = 200) -> None:
    """Of a pair, the second must find nothing of the first; the first again finds all of itself."""
    shared = again = 0
    with client_of(url) as client:
        for name, first, second in twins(number=number):
            cached = [_cached(client, each) for each in (first, second, first)]
            shared += cached[1] > cached[0]
            again += cached[2] > cached[0]
            report.must(cached[1] <= cached[0], f"twins {name}: the second was taken for the first")
    report.must(again > 0, "twins: nothing is ever found again, so nothing was shown")
    report.tell("media twins", {"pairs": number, "shared": shared, "found again": again})


def _cached(client: httpx.Client, picture: bytes) -> int:
    """Tokens of the prompt that were computed for an earlier one."""
    part = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    text = {"type": "text", "text": "What do you see in this picture? " * 4}
    body = {"messages": [{"role": "user", "content": [part, text]}], "max_tokens": 1}
    usage = client.post("/chat/completions", json=body).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def describe(url: str) -> str:
    """The greedy answer about the demo's own picture."""
    picture = (ROOT / "litevl" / "demo" / "sample.jpg").read_bytes()
    part = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    content = [part, {"type": "text", "text": "Describe the picture."}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0}
    with client_of(url) as client:
        answer = client.post("/chat/completions", json=body)
        return str(answer.json()["choices"][0]["message"]["content"])


# Faults of children ----------------------------------------------------------------------------

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP, signal.SIGXCPU)


def child_faults(url: str, watch: Watch, report: Report) -> None:
    """Strike the children while they work: that item fails alone, the next is opened at once."""
    good = Case(name="good", url=data_url(seeds()["png"]), must_be=200)
    statuses, latest = Counter[int](), 0.0
    with client_of(url) as client, ThreadPoolExecutor(1) as thread:
        for number, each in enumerate(SIGNALS):
            answer = thread.submit(ask, client, _slow(number))
            _strike_at_work(watch, each, answer.done)
            outcome = answer.result()
            statuses[outcome.status] += 1
            for complaint in outcome.complaints:
                report.must(False, f"{each.name}: {complaint}")
            after = ask(client, good)
            latest = max(latest, after.seconds)
            report.must(not after.complaints, f"after {each.name}: {after.complaints}")
    zombies = [p for p in watch.children() if p.status() == psutil.STATUS_ZOMBIE]
    report.must(not zombies, f"{len(zombies)} zombies")
    figures = {"signals": len(SIGNALS), "statuses": dict(statuses), "zombies": len(zombies)}
    report.tell("media children", figures | {"next picture within": f"{latest:.2f} s"})


def _slow(number: int) -> Case:
    """A picture that keeps a child busy for seconds; each number is another one."""
    return Case(name="slow", url=data_url(scans(4000, 4000, 1000 + number)))


def _strike_at_work(watch: Watch, what: signal.Signals, is_over: object) -> None:
    """Signal the child that burns time."""
    while callable(is_over) and not is_over():
        for child in watch.children():
            if child.cpu_percent(0.1) > 20.0:
                child.send_signal(what)
                return


def _lives(process: psutil.Process) -> bool:
    """Whether it still runs; whoever adopts an orphan may be slow to reap it."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def killed(report: Report) -> None:
    """A server that is killed in the midst of decoding leaves no child."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:
        try:
            with serve(folder=Path(folder), LITEVL_API_KEY=KEY) as live:
                watch = Watch(live.process.pid)
                with client_of(live.base_url) as client:
                    ask(client, Case(name="good", url=data_url(seeds()["png"])))
                    answers = [threads.submit(ask, client, _slow(number)) for number in range(2)]
                    while not (children := watch.children()):
                        time.sleep(0.01)
                    while not any(child.cpu_percent(0.1) > 20.0 for child in children):
                        children = watch.children()
                    live.process.kill()
                    began = time.monotonic()
                    while (alive := [p for p in children if _lives(p)]) and _since(began) < 5.0:
                        time.sleep(0.01)
                    seconds = _since(began)
                    for each in answers:
                        each.exception()
        except AssertionError:
            pass  # `serve` expects an end in peace
    report.must(not alive and seconds < 1.0, f"{len(alive)} children outlived their server")
    figures = {"children": len(children), "left": len(alive), "gone within": f"{seconds:.2f} s"}
    report.tell("media kill -9", figures)


def main(every: int) -> int:
    report, sink = Report(), Sink()
    sink.start()
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "canary.mp4"
        canary.write_bytes(clips()["h264 mp4"])
        with serve(folder=Path(folder), LITEVL_API_KEY=KEY) as live:
            said = describe(live.base_url)
            watch = Watch(live.process.pid)
            watch.start()
            corpus("pictures", live.base_url, list(pictures())[::every], watch, report)
            films = list(hostile_clips(sink.port, str(canary)))[::every]
            corpus("clips", live.base_url, films, watch, report)
            twins_apart(live.base_url, report, 200 // every)
            child_faults(live.base_url, watch, report)
            watch.end()
            report.must(describe(live.base_url) == said, "the good request is answered otherwise")
            children = watch.children()
            most = min(4, os.cpu_count() or 1)
            report.must(len(children) <= most, f"{len(children)} children")
            report.must(not watch.opened, f"children opened {sorted(watch.opened)}")
            report.must(sink.hits == 0, f"{sink.hits} hits on a server that nobody may come to")
        left = [child for child in children if child.is_running()]
        report.must(not left, f"{len(left)} children outlived their server")
    sink.listener.close()
    figures = {"sink": sink.hits, "opened by children": len(watch.opened), "left": len(left)}
    report.tell("media outside", figures)
    killed(report)
    print(f"media: {len(report.complaints)} complaints")
    return 1 if report.complaints else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 1))
