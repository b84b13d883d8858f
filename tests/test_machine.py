"""The memory of this process is what the tightest group around it leaves."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fakes import running
from litevl import machine
from litevl.api.admission import MEMORY_SHARE, PIXEL_BYTES
from litevl.machine import Memory, memory

MIB = 2**20
Limit = Callable[..., None]


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Limits a group; this process is in `a/b`."""
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUP", tmp_path / "own")
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/a/b\n")

    def set_limit(group: str, most: str, used: int, cached: int = 0) -> None:
        folder = tmp_path / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")

    return set_limit


def test_the_tightest_group_counts_wherever_it_is(limit: Limit) -> None:
    limit("a/b", "max", 0)
    limit("a", str(50 * MIB), 20 * MIB)
    limit("", str(60 * MIB), 45 * MIB)
    assert memory() == Memory(total=50 * MIB, free=15 * MIB)
    limit("a/b", str(10 * MIB), 20 * MIB)
    assert memory() == Memory(total=10 * MIB, free=0)


def test_cached_files_are_free(limit: Limit) -> None:
    limit("a/b", str(50 * MIB), 45 * MIB, cached=30 * MIB)
    assert memory().free == 35 * MIB


def test_without_a_limit_all_of_the_machine_counts(limit: Limit) -> None:
    total = psutil.virtual_memory().total
    for most in ("max", str(2 * total)):
        limit("a", most, 0)
        assert memory().total == total and 0 < memory().free <= total


def test_a_server_in_a_container_holds_no_more_pixels_than_its_limit_allows(limit: Limit) -> None:
    """Its host may have a hundred times as much."""
    room = 1000
    limit("", str(room * MEMORY_SHARE * PIXEL_BYTES), 0)
    with running() as rig, rig.connect():
        assert rig.service.admission._max_pixels == room
