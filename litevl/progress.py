"""What the terminal says of long work: one bar a phase for a person, a few plain lines for a log.

`cli.py` makes one `Progress` and hands its `report` to whoever downloads, loads or warms up. Knows
nothing of the work.
"""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

Report = Callable[[str, int, int, str], None]  # phase, done, total (0: not known), unit

WIDTH = 20
REDRAW_S = 0.1
LINE_S = 10.0  # a log is told of a long phase this often


def ignore(phase: str, done: int, total: int, unit: str) -> None:
    """A `Report` for those who do not want to know."""


@dataclass(slots=True)
class _Phase:
    name: str
    unit: str
    started: float
    shown: float = 0.0
    done: int = 0
    total: int = 0


def _to_stderr(text: str) -> None:
    with suppress(OSError):  # the work goes on where nobody looks any more
        sys.stderr.write(text)
        sys.stderr.flush()


class Progress:
    """Several threads may report at once, as a download does."""

    def __init__(
        self, write: Callable[[str], object] = _to_stderr, *, is_terminal: bool | None = None
    ) -> None:
        """`write` leads to stderr; `is_terminal` where it does not."""
        self._write = write
        self._is_terminal = sys.stderr.isatty() if is_terminal is None else is_terminal
        self._phase: _Phase | None = None
        self._lock = threading.Lock()

    def report(self, phase: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        """So much of a phase is done; another name than before ends the phase before."""
        with self._lock:
            now = time.monotonic()
            if self._phase is None or self._phase.name != phase:
                self.end()
                self._phase = _Phase(phase, unit, started=now)
                self._begin(self._phase, total)
            current = self._phase
            current.done, current.total = done, total
            if now - current.shown >= (REDRAW_S if self._is_terminal else LINE_S):
                current.shown = now
                self._show(current, now)

    def end(self) -> None:
        """The phase is over; its last line stays."""
        phase, self._phase = self._phase, None
        if phase is None:
            return
        seconds = f"{time.monotonic() - phase.started:.1f} s"
        size = f"{amount(phase.total)}, " if phase.unit == "B" else ""
        if self._is_terminal:
            self._write(f"\r\x1b[K  {phase.name:<12}{size}{seconds}\n")
        elif size:
            self._write(f"litevl: {phase.name}: done, {size}{seconds}\n")

    def say(self, line: str) -> None:
        """A line of its own; a phase that has not ended will not."""
        if self._phase is not None and self._is_terminal:
            self._write("\r\x1b[K")
        self._phase = None
        self._write(f"litevl: {line}\n")

    def _begin(self, phase: _Phase, total: int) -> None:
        if self._is_terminal:
            self._write(f"  {phase.name} …")
            return
        size = f" {amount(total)}" if phase.unit == "B" else ""
        phase.shown = phase.started
        self._write(f"litevl: {phase.name}{size}\n")

    def _show(self, phase: _Phase, now: float) -> None:
        if not phase.total:
            return
        told = _told(phase, now)
        if self._is_terminal:
            line = f"  {phase.name:<12}{_bar(phase)} {told}"
            self._write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self._write(f"litevl: {phase.name}: {told}\n")


def _bar(phase: _Phase) -> str:
    filled = min(WIDTH, WIDTH * phase.done // phase.total)
    return "━" * filled + "·" * (WIDTH - filled)


def _told(phase: _Phase, now: float) -> str:
    share = f"{100 * phase.done // phase.total:3d} %"
    if phase.unit != "B":
        return f"{share}  {phase.done} of {phase.total}"
    text = f"{share}  {amount(phase.done)} of {amount(phase.total)}"
    rate = phase.done / max(now - phase.started, 1e-3)
    if rate:
        text += f"  {amount(int(rate))}/s  {_span((phase.total - phase.done) / rate)} left"
    return text


def amount(num_bytes: float) -> str:
    """Bytes as people compare them with a card."""
    size, unit = (num_bytes / 2**30, "GiB") if num_bytes >= 2**30 else (num_bytes / 2**20, "MiB")
    return f"{size:,.1f}".removesuffix(".0") + f" {unit}"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
