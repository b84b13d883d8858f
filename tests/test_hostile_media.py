"""A sample of the hostile corpus in front of a real server; `make faults` sends all of it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hostile_clips import clips, hostile_clips
from hostile_pictures import Case, pictures, raw_pngs, twins
from litevl.config import Config
from litevl.media.loader import MediaLoader
from litevl.media.workers import Workers
from live import LiveServer
from media_faults import Sink, Watch, ask, client_of, describe
from media_samples import FakePlanner, item, opened, reference

EVERY = 40
HEAVY = ("bomb", "tail", "large", "21 MiB", "100000", "huge")  # seconds each: for `make faults`


def sample(cases: list[Case]) -> list[Case]:
    return [each for each in cases if not any(word in each.name for word in HEAVY)][::EVERY]


def test_hostile_media_are_answered_200_or_400_and_harm_nobody(
    server: LiveServer, tmp_path: Path
) -> None:
    sink, watch, canary = Sink(), Watch(server.process.pid), tmp_path / "canary.mp4"
    canary.write_bytes(clips()["h264 mp4"])
    cases = sample(list(pictures())) + sample(list(hostile_clips(sink.port, str(canary))))
    said = describe(server.base_url)
    for thread in (sink, watch):
        thread.start()
    with client_of(server.base_url) as client, ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda case: ask(client, case), cases))
    watch.end()
    sink.listener.close()
    assert [(each.case.name, each.complaints) for each in outcomes if each.complaints] == []
    assert {each.status for each in outcomes} == {200, 400}
    assert describe(server.base_url) == said
    assert (sink.hits, watch.opened) == (0, set())
    assert len(watch.children()) <= min(4, os.cpu_count() or 1)


@pytest.mark.anyio
async def test_every_kind_of_png_looks_as_a_person_would_see_it() -> None:
    pool = Workers(1)
    for name, data, seen in raw_pngs(np.random.default_rng(1)):
        _, frames = await opened(pool, item(data))
        assert np.abs(frames[0] - seen).max() <= 2, name
    await pool.close()


@pytest.mark.anyio
async def test_what_is_alike_in_some_ways_is_never_taken_for_the_same() -> None:
    loading = MediaLoader(FakePlanner(), Config())
    for name, first, second in twins(seed=1, number=20):
        loaded = await loading.load([reference(first), reference(second), reference(first)])
        digests = [each.digest for each in loaded]
        assert digests[0] == digests[2] != digests[1], name
    await loading.close()
