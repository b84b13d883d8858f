"""What of the machine this process may use: memory, as far as control groups leave it, and files.

Memory is asked for by `api/admission.py` for pixels, `api/bodies.py` for bodies and
`engine/memory.py` for weights and KV blocks. Knows nothing of what either is for.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")

OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)  # of this process, or of the machine


def is_out_of_files(error: BaseException | None) -> bool:
    """Whether no more could be opened: the error says so, or one that it came of."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in OUT_OF_FILES:
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """In bytes."""

    total: int
    free: int


def memory() -> Memory:
    """The least that the machine and each group around this process allow."""
    host = psutil.virtual_memory()
    every = [Memory(total=host.total, free=host.available), *_limits()]
    return Memory(total=min(each.total for each in every), free=min(each.free for each in every))


def _limits() -> Iterator[Memory]:
    """Of the groups that limit memory: this process' own and those around it."""
    group = GROUPS / _own_group()
    for each in (group, *group.parents):
        if each.is_relative_to(GROUPS):
            yield from _limit(each)


def _own_group() -> str:
    """Its path below `GROUPS`; "" where a container shows its own as the root."""
    try:
        lines = OWN_GROUP.read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")


def _limit(group: Path) -> Iterator[Memory]:
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:  # the root of all has none
        return
    if limit != "max":
        # Files that were read lie in memory as long as nobody needs it.
        cached = dict(line.split() for line in lines).get("inactive_file", 0)
        yield Memory(total=int(limit), free=max(0, int(limit) - used + int(cached)))
