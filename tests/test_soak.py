"""The soak's own judgement: what counts as lost, and which slope is a leak. `make soak` runs it."""

from dataclasses import replace

import pytest

from soak.clients import MIX
from soak.figures import Snapshot, losses, slope
from soak.wire import Answer, parse

BEFORE = Snapshot(
    threads=12,
    files=20,
    children=2,
    zombies=0,
    memory_mib=900.0,
    children_mib=60.0,
    cpu_seconds=1.0,
    inside={"tasks": 2, "pool_threads": 5, "blocks_held": 0, "features_held": 0, "requests": 0},
)


def test_nothing_is_lost_between_two_equal_looks() -> None:
    assert losses(BEFORE, BEFORE) == {}


@pytest.mark.parametrize("name", ["threads", "children", "zombies"])
def test_one_thread_or_child_too_many_is_lost(name: str) -> None:
    assert losses(BEFORE, replace(BEFORE, **{name: getattr(BEFORE, name) + 1})) == {name: 1}


@pytest.mark.parametrize("name", ["tasks", "requests", "blocks_held", "features_held"])
def test_what_the_server_still_holds_is_lost(name: str) -> None:
    after = replace(BEFORE, inside={**BEFORE.inside, name: BEFORE.inside[name] + 1})
    assert losses(BEFORE, after) == {name: 1}


def test_a_pool_may_start_its_threads_late_and_two_files_may_come_and_go() -> None:
    after = replace(BEFORE, threads=13, files=22, inside={**BEFORE.inside, "pool_threads": 6})
    assert losses(BEFORE, after) == {}
    assert losses(BEFORE, replace(BEFORE, files=25)) == {"files": 3}


def test_memory_that_grows_to_the_end_is_a_leak_and_memory_that_comes_to_rest_is_none() -> None:
    times = [60.0 * i for i in range(120)]
    noise = [0.5 * (i % 5) for i in range(120)]
    assert slope([(t, 900 + t / 360 + n) for t, n in zip(times, noise, strict=True)]).is_leak
    rested = slope([(t, min(900 + t / 60, 940) + n) for t, n in zip(times, noise, strict=True)])
    assert not rested.is_leak
    assert abs(rested.mib_per_hour) < 1


def test_a_run_of_a_minute_tells_a_sound_server_from_one_that_loses_4_mib_in_ten_requests() -> None:
    """Real ones, of a server whose kernels are compiled."""
    sound = (1280, 1281, 1281, 1282, 1283, 1283, 1283, 1284, 1284, 1284, 1284)
    leaking = (917, 938, 960, 973, 986, 995, 1003, 1014, 1024, 1030, 1036)
    assert not slope([(6.0 * i, float(mib)) for i, mib in enumerate(sound)]).is_leak
    assert slope([(6.0 * i, float(mib)) for i, mib in enumerate(leaking)]).is_leak


def test_the_mix_is_of_a_hundred() -> None:
    assert sum(MIX.values()) == 100


def test_a_chunked_answer_is_joined() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert parse(head + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n") == Answer(200, b"abc")
