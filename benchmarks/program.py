"""What every benchmark shares: its arguments, the machine it runs on, its table, its last line.

The table goes to stderr and the one JSON line to stdout, so that `>> FILE` collects figures.
Knows no model and imports no torch: the server's benchmark runs without it.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import psutil

CPU_INFO = Path("/proc/cpuinfo")
DISTURBED = 0.1  # cores of other programs: on two, that much spoils a figure
TRIES = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds since whenever: on the clock, of all cores, and of them by us and our children."""

    clock: float
    by_all: float
    by_us: float

    @classmethod
    def now(cls) -> "Spent":
        cpu = psutil.cpu_times()
        by_all = cpu.user + cpu.nice + cpu.system + cpu.irq + cpu.softirq + cpu.steal
        return cls(monotonic(), by_all, sum(os.times()[:4]))

    def cores_of_others_since(self) -> float:
        """Cores that other programs have kept busy meanwhile."""
        now = Spent.now()
        others = (now.by_all - self.by_all) - (now.by_us - self.by_us)
        return max(0.0, round(others / (now.clock - self.clock), 2))


BEGAN = Spent.now()


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every program takes."""
    text = (description or "").partition("\n")[0]
    made = argparse.ArgumentParser(description=text)
    made.add_argument("--quick", action="store_true", help="a smaller form, for a first look")
    made.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of torch"
    )
    return made


def add_checkpoint(made: argparse.ArgumentParser) -> None:
    """For programs that run a model."""
    made.add_argument(
        "--checkpoint", type=Path, help="a model folder (default: the reference, made once)"
    )


def machine(threads: int) -> dict[str, Any]:
    """What a figure must be read with."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "cores_of_others": BEGAN.cores_of_others_since(),
    }


def undisturbed(measure: Callable[[], T]) -> tuple[T, float]:
    """A measurement, and how many cores other programs kept busy during it: made again, but not for
    ever, while they did; the least disturbed counts."""
    best: tuple[T, float] | None = None
    for _ in range(TRIES):
        began = Spent.now()
        value, others = measure(), began.cores_of_others_since()
        if best is None or others < best[1]:
            best = value, others
        if others < DISTURBED:
            break
    assert best
    return best


def _cpu_name() -> str:
    text = CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def tell(line: str = "") -> None:
    """A line for the reader, now: a benchmark may take minutes."""
    print(line, file=sys.stderr, flush=True)


def table(head: Many[str], rows: Iterable[Many[object]]) -> None:
    """Columns, right-aligned, for the reader."""
    texts = [[_cell(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        tell("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    tell()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def finish(name: str, figures: dict[str, Any], threads: int) -> None:
    """The program's last line."""
    print(json.dumps({"benchmark": name, **_rounded(figures), "machine": machine(threads)}))


def _rounded(value: Any) -> Any:
    """Five significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
