"""The media room by its front door: references in, what the model will see out."""

import asyncio
import base64
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from litevl.cache import Cache
from litevl.config import Config
from litevl.errors import (
    ContextLengthError,
    InvalidValueError,
    LitevlError,
    MediaError,
    UnavailableError,
)
from litevl.media import budgets, decode, fetch, loader, sources
from litevl.media.loader import MediaLoader
from litevl.sequence import (
    LoadedMedia,
    MediaKind,
    MediaOptions,
    MediaPlan,
    MediaRef,
    PlannedMedia,
    Probe,
)
from media_samples import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    FakePlanner,
    clip,
    corners,
    data_url,
    encode,
    indices_shown,
    png,
    quarters,
    reference,
)

pytestmark = pytest.mark.anyio

Make = Callable[..., MediaLoader]


@pytest.fixture
async def make(anyio_backend: str) -> AsyncIterator[Make]:
    """Loaders that are closed at the end and must leave no child."""
    made: list[MediaLoader] = []

    def build(planner: FakePlanner | None = None, **config: object) -> MediaLoader:
        made.append(MediaLoader(planner or FakePlanner(), Config(**config)))  # type: ignore[arg-type]
        return made[-1]

    yield build
    pids = [pid for each in made for pid in each._workers.pids]
    for each in made:
        await each.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


async def error_of(loading: MediaLoader, *refs: MediaRef) -> LitevlError:
    with pytest.raises(LitevlError) as caught:
        await loading.load(refs)
    error = caught.value
    assert error.status == 400
    assert error.param is not None and error.message.startswith(f"{error.param}: ")
    return error


def numbered(*sources: bytes, declared: MediaKind = "image") -> list[MediaRef]:
    return [
        reference(source, declared, param=f"messages[0].content[{i}]")
        for i, source in enumerate(sources)
    ]


# What comes out --------------------------------------------------------------------------------


async def test_pictures_and_clips_come_in_order_by_their_bytes(make: Make) -> None:
    planner = FakePlanner(lambda probe: (0, 7, 23))
    mixed = [png(), clip(), encode(quarters(), "JPEG"), clip("libvpx-vp9", "webm"), png(64, 64)]
    for declared in ("image", "video"):
        kind: MediaKind = "image" if declared == "image" else "video"
        loaded = await make(planner, limit_mm_per_prompt={"image": 5, "video": 5}).load(
            numbered(*mixed, declared=kind)
        )
        assert [each.kind for each in loaded] == ["image", "video", "image", "video", "image"]
        assert [each.param for each in loaded] == [f"messages[0].content[{i}]" for i in range(5)]
        assert [each.frames.shape[0] for each in loaded] == [1, 3, 1, 3, 1]
        for picture in (loaded[0], loaded[2], loaded[4]):
            assert corners(picture.frames[0]) == [RED, GREEN, BLUE, WHITE]
        for shown in (loaded[1], loaded[3]):
            assert indices_shown(shown.frames) == [0, 7, 23]


async def test_the_planner_sees_the_header_and_decides(make: Make) -> None:
    planner = FakePlanner(lambda probe: (5, 5, 2), size=(32, 16))
    (loaded,) = await make(planner).load([reference(clip())])
    assert planner.probes == [Probe(kind="video", width=64, height=48, num_frames=24, fps=8.0)]
    assert loaded.probe == planner.probes[0]
    assert loaded.plan == MediaPlan(frame_indices=(5, 5, 2), width=32, height=16)
    assert loaded.frames.shape == (3, 16, 32, 3)
    assert loaded.frames.dtype == np.uint8


async def test_frames_are_resized_batch_by_batch_as_they_arrive(make: Make) -> None:
    """Frames at source size never exist all at once."""
    planner = FakePlanner(lambda probe: tuple(range(probe.num_frames)), size=(28, 28))
    (loaded,) = await make(planner).load([reference(clip(size=(1280, 720)))])
    assert loaded.frames.shape == (24, 28, 28, 3)
    assert sum(shape[0] for shape in planner.batches) == 24
    assert len(planner.batches) > 2
    assert all(np.prod(shape) <= decode.BATCH_BYTES for shape in planner.batches)


async def test_nothing_to_load_is_nothing(make: Make) -> None:
    assert await make().load([]) == []


async def test_the_digest_names_bytes_kind_plan_and_options(make: Make) -> None:
    async def digest(data: bytes, planner: FakePlanner | None = None, **keys: Any) -> bytes:
        loaded: list[LoadedMedia] = await make(planner).load(
            [reference(data, options=MediaOptions(**keys))]
        )
        return loaded[0].digest

    base = await digest(clip())
    assert len(base) == 16
    assert base == await digest(clip())
    others = [
        await digest(clip(frames=23)),
        await digest(png()),
        await digest(clip(), fps=2.0),
        await digest(clip(), max_pixels=2),
        await digest(clip(), min_pixels=2),
        await digest(clip(), FakePlanner(lambda probe: (0, 1))),
        await digest(clip(), FakePlanner(size=(28, 28))),
    ]
    assert len({base, *others}) == 8


async def test_what_was_decoded_before_is_not_decoded_again_in_the_same_scope(make: Make) -> None:
    planner = FakePlanner(lambda probe: (0, 7, 23))
    loader = make(planner)
    (first,) = await loader.load([reference(clip(), param="a")], b"one")
    planned = len(planner.batches)
    again, beside = await loader.load([reference(clip(), param=name) for name in "bc"], b"one")
    assert len(planner.batches) == planned
    assert again.frames is first.frames and not first.frames.flags.writeable
    assert [each.param for each in (first, again, beside)] == ["a", "b", "c"]
    assert again.digest == first.digest and loader._cache.used == first.frames.nbytes
    assert first.decode_seconds and again.decode_seconds is beside.decode_seconds is None
    options = MediaOptions(max_pixels=2)
    for other in (
        await loader.load([reference(clip())], b"two"),
        await loader.load([reference(clip(), options=options)], b"one"),
    ):
        assert other[0].frames is not first.frames and other[0].digest != first.digest


async def test_what_was_decoded_before_is_decoded_anew_in_another_size(make: Make) -> None:
    async def shrink(planned: list[PlannedMedia]) -> list[PlannedMedia]:
        return [replace(each, plan=replace(each.plan, width=20, height=12)) for each in planned]

    loader = make()
    (whole,) = await loader.load([reference(png())])
    (small,) = await loader.load([reference(png())], fit=shrink)
    assert (whole.frames.shape, small.frames.shape) == ((1, 24, 40, 3), (1, 12, 20, 3))
    assert small.digest != whole.digest


def test_the_cache_keeps_within_its_bytes_what_was_used_last() -> None:
    cache: Cache[str, str] = Cache(30)
    for name in "abac":
        cache.put(name, "frames", 12)
        cache.get("a")
    assert [cache.get(name) for name in "abc"] == ["frames", None, "frames"]
    cache.put("large", "frames", 33)
    assert cache.get("large") is None and cache.used == 24


# Limits ----------------------------------------------------------------------------------------


async def test_counts_are_limited_before_anything_is_opened(make: Make) -> None:
    broken = ["data:image/png;base64,!" for _ in range(4)]
    refs = [reference(url, param=f"messages[0].content[{i}]") for i, url in enumerate(broken)]
    error = await error_of(make(limit_mm_per_prompt={"image": 3}), *refs)
    assert (error.code, error.param) == ("too_many_images", "messages[0].content[3]")


@pytest.mark.parametrize(
    ("data", "declared", "code"),
    [(png(), "video", "too_many_images"), (clip(), "image", "too_many_videos")],
)
async def test_counts_hold_for_what_the_bytes_are_too(
    make: Make, data: bytes, declared: MediaKind, code: str
) -> None:
    planner = FakePlanner()
    limited = make(planner, limit_mm_per_prompt={"image": 1, "video": 1} | {declared: 9})
    assert len(await limited.load(numbered(data, declared=declared))) == 1
    planner.probes.clear()
    error = await error_of(limited, *numbered(data, data, declared=declared))
    assert (error.code, error.param) == (code, "messages[0].content[1]")
    assert planner.probes == []


async def test_a_count_of_zero_switches_a_kind_off(make: Make) -> None:
    error = await error_of(make(limit_mm_per_prompt={"video": 0}), reference(clip()))
    assert error.code == "too_many_videos"


async def test_pictures_share_one_budget_of_pixels(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "MAX_REQUEST_PIXELS", 3 * 40 * 24)
    planner = FakePlanner()
    loading = make(planner)
    assert len(await loading.load(numbered(png(), png(), clip(), png()))) == 4
    planner.batches.clear()
    error = await error_of(loading, *numbered(png(), png(), clip(), png(), png()))
    assert (error.code, error.param) == ("image_too_large", "messages[0].content[4]")
    assert planner.batches == []


async def test_all_files_of_a_request_share_one_budget_of_bytes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(data_url(png())) * 3 // 4
    monkeypatch.setattr(budgets, "MAX_REQUEST_BYTES", 3 * size)
    assert len(await make().load(numbered(png(), png(), png()))) == 3
    broken = reference(f"data:image/png;base64,{'!' * len(data_url(png()))}", param="x")
    error = await error_of(make(), *numbered(png(), png(), png()), broken)
    assert (error.code, error.param) == ("image_too_large", "x")
    assert "MiB" in error.message


async def test_fetched_files_count_as_they_come(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + clip())
        writer.close()

    monkeypatch.setattr(budgets, "MAX_REQUEST_BYTES", 2 * len(clip()) + 1)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        loading = make(media_networks=("127.0.0.0/8",))
        fetched = [reference(url, "video") for _ in range(3)]
        assert len(await loading.load(fetched[:2])) == 2
        error = await error_of(loading, reference(png()), *fetched[:2])
        assert error.code == "video_too_large"


async def test_a_long_file_is_refused_by_the_length_of_its_base64(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", {"image": 1000, "video": 3000})
    shape = {"image": png(), "video": clip(frames=2)}
    for kind, size in (("image", 1003), ("video", 3003)):
        head = base64.b64encode(shape[kind][:48]).decode()
        broken_behind = "data:;base64," + head + "!" * (size * 4 // 3)
        assert (await error_of(make(), reference(broken_behind))).code == f"{kind}_too_large"


# Failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1/a.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("data:image/png;base64,AAA", "invalid_base64_image"),
        ("data:image/png;base64,", "empty_image_file"),
        (data_url(b"<svg/>"), "unsupported_media_type"),
        (data_url(png()[:60]), "image_parse_error"),
        (data_url(clip()[:100]), "video_parse_error"),
        (data_url(png(2, 2)), "image_too_small"),
    ],
)
async def test_errors_name_the_part_and_never_its_content(make: Make, url: str, code: str) -> None:
    error = await error_of(make(), reference(url, param="messages[3].content[2]"))
    assert isinstance(error, MediaError)
    assert (error.code, error.param) == (code, "messages[3].content[2]")
    for content in ("127.0.0.1", "passwd", "svg", url[-8:]):
        assert content not in error.message


async def test_what_cannot_fit_together_is_refused_before_anything_is_decoded(make: Make) -> None:
    class Narrow(FakePlanner):
        def check(self, media: Sequence[PlannedMedia]) -> None:
            raise ContextLengthError(f"{len(media)} are too many", param="messages")

    planner = Narrow()
    with pytest.raises(ContextLengthError, match="2 are too many"):
        await make(planner).load(numbered(png(), clip()))
    assert planner.batches == []


async def test_frames_of_all_clips_are_bounded_together(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = FakePlanner(lambda probe: tuple(range(24)))
    monkeypatch.setattr(loader, "MAX_CLIP_PIXELS", 2 * 24 * 64 * 48)
    assert len(await make(planner).load(numbered(clip(), clip()))) == 2
    monkeypatch.setattr(loader, "MAX_CLIP_PIXELS", 2 * 24 * 64 * 48 - 1)
    error = await error_of(make(planner), *numbered(clip(), clip()))
    assert (error.code, error.param) == ("video_too_large", "messages[0].content[1]")


async def test_the_planners_refusal_is_passed_on(make: Make) -> None:
    class Refusing(FakePlanner):
        def plan(self, probe: Probe, options: MediaOptions, param: str) -> MediaPlan:
            raise InvalidValueError(f"{param}: no", param=param)

    error = await error_of(make(Refusing()), reference(png()))
    assert isinstance(error, InvalidValueError)


async def test_one_failure_cancels_the_rest_and_the_loader_goes_on(make: Make) -> None:
    loading = make()
    await loading.load([reference(png())])
    stopped = list(loading._workers.pids)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)  # the good items can never end
    good = numbered(png(64, 64), clip())
    error = await error_of(loading, *good, reference("data:image/png;base64,!", param="x"))
    assert error.param == "x"
    assert not set(stopped) & loading._workers.pids
    assert len(await loading.load(good)) == 2


async def test_a_failing_resize_frees_the_child(make: Make) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    loading = make(FakePlanner(lambda probe: tuple(range(24)), on_resize=fail))
    with pytest.raises(ZeroDivisionError):
        await loading.load([reference(clip(size=(1280, 720)))])
    assert not loading._workers.pids


async def test_a_client_that_goes_away_leaves_no_child_at_work(make: Make) -> None:
    loading = make()
    await loading.load([reference(png())])
    (pid,) = loading._workers.pids
    os.kill(pid, signal.SIGSTOP)
    task = asyncio.create_task(loading.load([reference(png(64, 64))]))
    while loading._workers._idle:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not os.path.exists(f"/proc/{pid}")
    assert len(await loading.load([reference(png())])) == 1


@pytest.mark.parametrize("data", [png(64, 64), clip()])
async def test_closing_ends_children_at_work_and_starts_no_other(make: Make, data: bytes) -> None:
    loading = make()
    await loading.load([reference(png())])
    (pid,) = loading._workers.pids
    os.kill(pid, signal.SIGSTOP)
    task = asyncio.create_task(loading.load([reference(data)]))
    while loading._workers._idle:
        await asyncio.sleep(0)
    await loading.close()
    with pytest.raises(LitevlError):
        await task
    with pytest.raises(UnavailableError):
        await loading.load([reference(data)])
    assert not loading._workers.pids


async def test_many_pictures_load_with_few_children(make: Make) -> None:
    loading = make()
    loaded = await loading.load(numbered(*(png(40 + i, 24) for i in range(64))))
    assert [each.probe.width for each in loaded] == [40 + i for i in range(64)]
    assert len(loading._workers.pids) <= 4


async def test_names_without_an_answer_hold_up_nothing_but_lookups(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed, hanging, were_freed = threading.Event(), threading.Event(), []

    def hang(*args: object, **keys: object) -> None:
        hanging.set()
        were_freed.append(freed.wait(5.0))
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    loading = make()
    urls = [f"http://name{i}.example/" for i in range(2 * fetch.MAX_LOOKUPS)]
    jobs = [asyncio.create_task(error_of(loading, reference(url))) for url in urls]
    while not hanging.is_set():
        await asyncio.sleep(0)
    await asyncio.to_thread(freed.set)  # a thread of the loop, as the rest of the server uses them
    assert {error.code for error in await asyncio.gather(*jobs)} == {"invalid_image_url"}
    assert were_freed == [True] * len(urls)


async def test_closing_waits_for_no_lookup(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    freed, hanging = threading.Event(), threading.Event()

    def hang(*args: object, **keys: object) -> None:
        hanging.set()
        freed.wait(5.0)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    loading = make()
    job = asyncio.create_task(error_of(loading, reference("http://name.example/")))
    await asyncio.to_thread(hanging.wait)
    await loading.close()
    assert not job.done()
    freed.set()
    assert (await job).code == "invalid_image_url"
