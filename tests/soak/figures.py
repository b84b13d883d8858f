"""What a soak measures: a process from outside, what it lost between two looks, how memory grows.

Used by `__main__.py`. Reads /proc of the server and of nobody else.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

MIB = 2**20
MAX_SLOPE = 5.0  # MiB an hour, in the last half
NOISE = 4.0  # MiB that the last half may grow in any case: too little time tells no slope
FILES = 2  # open ones more are within what comes and goes


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A server at one moment."""

    threads: int
    files: int
    children: int
    zombies: int
    memory_mib: float
    children_mib: float
    cpu_seconds: float
    inside: Mapping[str, int] = field(default_factory=dict)  # what it tells of itself

    @classmethod
    def of(cls, pid: int, inside: Mapping[str, int]) -> "Snapshot":
        process = psutil.Process(pid)
        children = process.children(recursive=True)
        alive = [each for each in children if each.status() != psutil.STATUS_ZOMBIE]
        times = process.cpu_times()
        return cls(
            threads=process.num_threads(),
            files=process.num_fds(),
            children=len(alive),
            zombies=len(children) - len(alive),
            memory_mib=process.memory_info().rss / MIB,
            children_mib=sum(each.memory_info().rss for each in alive) / MIB,
            cpu_seconds=sum(times[:4]),
            inside=inside,
        )

    def told(self) -> dict[str, Any]:
        numbers = {"threads": self.threads, "files": self.files, "children": self.children}
        memory = {"memory_mib": round(self.memory_mib, 1)}
        return {**numbers, "zombies": self.zombies, **memory, **self.inside}


def losses(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """What there is more of afterwards than there may be; empty when nothing was lost."""
    pools = after.inside.get("pool_threads", 0) - before.inside.get("pool_threads", 0)
    grown = {
        "threads": after.threads - before.threads - pools,
        "files": max(after.files - before.files - FILES, 0),
        "children": after.children - before.children,
        "zombies": after.zombies,
        **{
            name: count - before.inside.get(name, 0)
            for name, count in after.inside.items()
            if name not in ("pool_threads", "objects_LoadedMedia")
        },
    }
    held = {name: after.inside.get(name, 0) for name in ("blocks_held", "features_held")}
    return {name: count for name, count in (grown | held).items() if count > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How memory went in the last half of the samples."""

    mib_per_hour: float
    error: float  # standard error of the slope
    mib: float  # what the line climbs in that half
    samples: int
    course: tuple[float, ...] = ()  # MiB, eight of all samples

    @property
    def is_leak(self) -> bool:
        """More than the limit, and more than chance or a short run explain."""
        return self.mib_per_hour - 2 * self.error > MAX_SLOPE and self.mib > NOISE

    def told(self) -> dict[str, object]:
        return {
            "mib_per_hour": round(self.mib_per_hour, 2),
            "standard_error": round(self.error, 2),
            "samples": self.samples,
            "course_mib": [round(each) for each in self.course],
        }


def slope(samples: Many[tuple[float, float]]) -> Growth:
    """A straight line through the last half of (seconds, MiB)."""
    half = np.asarray(samples[len(samples) // 2 :], dtype=float)
    if len(half) < 3:
        return Growth(mib_per_hour=0.0, error=0.0, mib=0.0, samples=len(half))
    hours, mib = half[:, 0] / 3600, half[:, 1]
    (line, start), covariance = np.polyfit(hours, mib, 1, cov="unscaled")
    rest = mib - (line * hours + start)
    error = float(np.sqrt(covariance[0, 0] * rest.var() * len(rest) / (len(rest) - 2)))
    every = max(1, len(samples) // 8)
    return Growth(
        mib_per_hour=float(line),
        error=error,
        mib=float(line * (hours[-1] - hours[0])),
        samples=len(half),
        course=tuple(each for _, each in samples[::every]),
    )
