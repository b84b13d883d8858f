"""References -> what the model will see: fetch, sniff, probe, plan, decode, resize.

`api/chat.py` calls `MediaLoader.load` once a request; `cli.py` builds it with the processor's
planner. Limits are checked on the cheapest form first: count, encoded length, header.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from litevl.cache import Cache
from litevl.config import Config
from litevl.errors import MediaError, UnavailableError
from litevl.media.budgets import MAX_BYTES_IN_FLIGHT, ByteBudget, BytesInFlight
from litevl.media.fetch import Fetcher, Resolver
from litevl.media.local import LocalFiles, is_file_url
from litevl.media.sources import (
    NOUN,
    check_size,
    is_data_url,
    parse_data_url,
    sniff,
)
from litevl.media.workers import DecodeBudget, Item, Workers
from litevl.sequence import (
    LoadedMedia,
    MediaKind,
    MediaOptions,
    MediaPlan,
    MediaPlanner,
    MediaRef,
    PlannedMedia,
    Probe,
)
from litevl.turns import in_short_turns

MAX_REQUEST_PIXELS = 160_000_000  # of all pictures of one request together
MAX_CLIP_PIXELS = 2 * 768 * 1920 * 1080  # of all frames that a request has decoded
PARALLEL = 8  # items of one request that load at the same time
INLINE_BYTES = 2**16  # shorter URLs and files are not worth a thread
FRAME_LIST_FPS = 2.0  # of a clip that comes as pictures and does not say
CACHE_BYTES = 2**28  # of decoded frames kept for later requests

S = TypeVar("S")
T = TypeVar("T")
Fit = Callable[[list[PlannedMedia]], Awaitable[list[PlannedMedia]]]  # the same, perhaps smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probed:
    """An item whose header is known."""

    ref: MediaRef
    items: tuple[Item, ...]  # several where a clip comes as pictures of its frames
    name: bytes  # in the cache
    probe: Probe
    num_pixels: int  # of pictures
    known: LoadedMedia | None  # decoded for an earlier request


class MediaLoader:
    """Loads the pictures and clips of requests. Belongs to one event loop; `close` ends it."""

    def __init__(
        self, planner: MediaPlanner, config: Config, *, resolver: Resolver | None = None
    ) -> None:
        self._planner = planner
        self._limits = config.limit_mm_per_prompt
        self._fetcher = Fetcher(
            config.media_ip_networks, domains=config.allowed_media_domains, resolver=resolver
        )
        self._files = LocalFiles(config.allowed_local_media_path)
        self._in_flight = BytesInFlight(MAX_BYTES_IN_FLIGHT, "files")
        self._workers = Workers()
        self._cache: Cache[bytes, LoadedMedia] = Cache(CACHE_BYTES)
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "litevl-media")
        self._is_closed = False

    async def load(
        self, refs: Many[MediaRef], scope: bytes = b"", fit: Fit | None = None
    ) -> list[LoadedMedia]:
        """Everything that one request refers to, in order; all of it or none.

        `fit` may change what was planned, with all of it in view. What was decoded before in the
        same scope, from the same bytes with the same options, is not decoded again, and has a
        digest that no other scope has. `MediaError`, or the planner's `InvalidValueError`, for the
        first item that fails; the others are cancelled. `UnavailableError` once it is closed.
        """
        # Its bytes count among those of all until they are decoded.
        with closing(ByteBudget(self._in_flight)) as budget:
            pairs = await self._plan(refs, scope, fit, budget)
            self._planner.check([planned for _, planned in pairs])
            return await _together(self._decode, pairs)

    async def measure(
        self, refs: Many[MediaRef], scope: bytes = b"", fit: Fit | None = None
    ) -> list[PlannedMedia]:
        """What `load` would decode; raises what it would raise before that."""
        with closing(ByteBudget(self._in_flight)) as budget:
            return [planned for _, planned in await self._plan(refs, scope, fit, budget)]

    async def _plan(
        self, refs: Many[MediaRef], scope: bytes, fit: Fit | None, budget: ByteBudget
    ) -> list[tuple[_Probed, PlannedMedia]]:
        if self._is_closed:
            raise UnavailableError("the server is shutting down: ask again later")
        self._check_counts([(ref.declared, ref.param) for ref in refs])
        _spend_inline(budget, refs)
        probed = await _together(partial(self._probe, budget, DecodeBudget(), scope), refs)
        self._check_counts([(each.probe.kind, each.ref.param) for each in probed])
        _check_pixels(probed)
        planned = [self._plan_alone(each) for each in probed]
        planned = await fit(planned) if fit else planned
        _check_frames(planned)
        return list(zip(probed, planned, strict=True))

    async def close(self) -> None:
        """End the children; nobody who is at work with one gets to the end of it."""
        self._is_closed = True
        await self._workers.close()
        self._fetcher.close()
        self._threads.shutdown(wait=False)

    def _check_counts(self, items: Many[tuple[MediaKind, str]]) -> None:
        for kind in get_args(MediaKind):
            limit = self._limits[kind]
            params = [param for each, param in items if each == kind]
            if len(params) > limit:
                raise MediaError(
                    params[limit],
                    f"at most {limit} {NOUN[kind]}s are allowed in one request"
                    " (--limit-mm-per-prompt)",
                    code=f"too_many_{kind}s",
                )

    async def _probe(
        self, budget: ByteBudget, decoding: DecodeBudget, scope: bytes, ref: MediaRef
    ) -> _Probed:
        if ref.frames:
            work = partial(self._probe, budget, decoding, scope)
            return self._join_frames(ref, await _together(work, ref.frames))
        data = await self._read(ref, budget)
        sniffed = sniff(data, ref.param)
        check_size(len(data), sniffed.kind, ref.param)
        item = Item(data=data, sniffed=sniffed, param=ref.param, budget=decoding)
        name = await self._of_bytes(len(data), _name, data, ref.options, scope)
        known = self._cache.get(name)
        probe = known.probe if known else await self._workers.probe(item)
        pixels = probe.width * probe.height if probe.kind == "image" else 0
        return _Probed(
            ref=ref, items=(item,), name=name, probe=probe, num_pixels=pixels, known=known
        )

    def _join_frames(self, ref: MediaRef, frames: Many[_Probed]) -> _Probed:
        """Pictures as one clip of the size of the first; models look at pairs of them."""
        for each in frames:
            if each.probe.kind != "image":
                raise each.items[0].error("stands where a picture is wanted", "parse_error")
        first, names = frames[0].probe, b"".join(each.name for each in frames)
        name = blake2b(names, digest_size=16).digest()
        items = tuple(item for each in frames for item in each.items)
        items += items[-1:] * (len(items) % 2)
        return _Probed(
            ref=ref,
            items=items,
            name=name,
            probe=Probe(
                kind="video",
                width=first.width,
                height=first.height,
                num_frames=len(items),
                fps=ref.options.fps or FRAME_LIST_FPS,
            ),
            num_pixels=sum(each.num_pixels for each in frames),
            known=self._cache.get(name),
        )

    async def _read(self, ref: MediaRef, budget: ByteBudget) -> bytes:
        if is_data_url(ref.url):
            return await self._of_bytes(len(ref.url), parse_data_url, ref)
        if is_file_url(ref.url):
            data = await self._in_thread(self._files.read, ref)
            budget.spend(len(data), ref.declared, ref.param)
            return data
        return await self._fetcher.fetch(ref, budget)

    async def _of_bytes(self, size: int, function: Callable[..., T], *args: object) -> T:
        """Work on so many bytes: here, or in a thread where it would keep the loop from others."""
        if size <= INLINE_BYTES:
            return function(*args)
        return await self._in_thread(function, *args)

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        work = partial(in_short_turns, function, *args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _plan_alone(self, probed: _Probed) -> PlannedMedia:
        ref, options = probed.ref, probed.ref.options
        if ref.frames:  # they are seen whole
            options = replace(options, fps=None, nframes=len(probed.items), max_frames=None)
        plan = self._planner.plan(probed.probe, options, ref.param)
        return PlannedMedia(probe=probed.probe, plan=plan, param=ref.param, options=options)

    async def _decode(self, pair: tuple[_Probed, PlannedMedia]) -> LoadedMedia:
        probed, planned = pair
        if probed.known and probed.known.plan == planned.plan:
            return replace(probed.known, param=planned.param, decode_seconds=None)
        loaded = await self._decode_anew(probed, planned)
        loaded.frames.setflags(write=False)
        self._cache.put(probed.name, loaded, loaded.frames.nbytes)
        return loaded

    async def _decode_anew(self, probed: _Probed, planned: PlannedMedia) -> LoadedMedia:
        began = time.monotonic()
        plan, kind = planned.plan, planned.kind
        frames = np.empty((len(plan.frame_indices), plan.height, plan.width, 3), np.uint8)
        done = 0

        async def keep(batch: NDArray[np.uint8]) -> None:
            nonlocal done
            resized = await self._in_thread(self._planner.resize, batch, kind, plan)
            frames[done : done + len(batch)] = resized
            done += len(batch)

        if probed.ref.frames:
            for index in plan.frame_indices:
                await self._workers.decode(probed.items[index], (0,), keep)
        else:
            await self._workers.decode(probed.items[0], plan.frame_indices, keep)
        return LoadedMedia(
            probe=planned.probe,
            plan=plan,
            param=planned.param,
            options=planned.options,
            frames=frames,
            digest=_digest(probed, plan),
            decode_seconds=time.monotonic() - began,
        )


def _spend_inline(budget: ByteBudget, refs: Iterable[MediaRef]) -> None:
    """What data: URLs hold, by their length."""
    for each in (each for ref in refs for each in (ref, *ref.frames)):
        if is_data_url(each.url):
            budget.spend(len(each.url) * 3 // 4, each.declared, each.param)


def _check_pixels(probed: Iterable[_Probed]) -> None:
    """One budget for all pictures of a request, before any of them is decoded."""
    pixels = 0
    for each in probed:
        pixels += each.num_pixels
        if pixels > MAX_REQUEST_PIXELS:
            raise each.items[0].error(
                f"takes the request beyond {MAX_REQUEST_PIXELS // 10**6} megapixels: send less",
                "too_large",
            )


def _check_frames(planned: Iterable[PlannedMedia]) -> None:
    """One budget for all frames of a request that are to be decoded."""
    pixels = 0
    for each in (each for each in planned if each.kind == "video"):
        pixels += len(each.plan.frame_indices) * each.probe.width * each.probe.height
        if pixels > MAX_CLIP_PIXELS:
            raise MediaError(
                each.param,
                f"the clip takes the request beyond"
                f" {MAX_CLIP_PIXELS // 10**6} megapixels of frames: ask for fewer (fps,"
                " max_frames), or send a smaller clip",
                code="video_too_large",
            )


def _name(data: bytes, options: MediaOptions, scope: bytes) -> bytes:
    """Names an item as it was sent, and by whom."""
    name = blake2b(repr((scope, options)).encode(), digest_size=16)
    name.update(data)
    return name.digest()


def _digest(probed: _Probed, plan: MediaPlan) -> bytes:
    """Names what the model sees: equal only for equal bytes, treated equally, in one scope."""
    return blake2b(probed.name + repr((probed.probe.kind, plan)).encode(), digest_size=16).digest()


async def _together(work: Callable[[S], Awaitable[T]], items: Iterable[S]) -> list[T]:
    """Work on all items, a few at a time; the first failure cancels the rest and is raised."""
    slots = asyncio.Semaphore(PARALLEL)

    async def one(item: S) -> T:
        async with slots:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
