"""`litevl serve` as the soak watches it: it tells what it holds when asked by SIGUSR1.

`python -m soak.server COUNTS LEAK [litevl serve's arguments]`, started by `__main__.py`.
Caches are made small, so that they turn over within minutes, and oneDNN's kernels for every count
of rows are compiled at the start: what memory still grows by is then a leak. LEAK names a fault to
be planted (`none`): the soak must find each of them, or it would prove nothing.
"""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from litevl import cli
from litevl.api.service import Service
from litevl.engine import memory
from litevl.engine.engine import Engine
from litevl.media import loader
from litevl.models import loader as model_loader
from litevl.models.linear import PackedLinear, padded_rows

FRAME_BYTES, FEATURE_BYTES = 2**22, 2**20  # of the caches
MAX_ROWS = 4096  # patches or tokens of a step
EVERY = 10  # requests, one of which leaks
POOLS = ("litevl-prepare", "litevl-media", "litevl-dns", "asyncio")  # bounded, but grow when used

kept: list[object] = []


def objects() -> list[object]:
    """All that the collector knows, what `litevl serve` put out of its way included."""
    gc.unfreeze()
    return gc.get_objects()


def engine() -> Engine | None:
    return next((each for each in objects() if isinstance(each, Engine)), None)


def counts() -> dict[str, int]:
    """What must be the same at the end as at the beginning. In the main thread, at idle."""
    gc.collect()
    found: dict[str, int] = {
        "tasks": len(asyncio.all_tasks()),
        "pool_threads": sum(t.name.startswith(POOLS) for t in threading.enumerate()),
    }
    everything = objects()
    for name in ("Sequence", "Generation", "RequestRecord", "GuardedProtocol", "LoadedMedia"):
        found[f"objects_{name}"] = sum(type(each).__name__ == name for each in everything)
    for each in everything:
        if isinstance(each, Service):
            found["requests"] = each.num_running
        if isinstance(each, Engine):
            pool = each.scheduler.pool
            found["blocks_held"] = pool.num_blocks - pool.num_free
            found["features_held"] = each.scheduler.encoder_cache.num_held
            found["unfinished"] = each.num_unfinished
    return found


def tell_counts_to(file: Path) -> None:
    def tell(*_: object) -> None:
        new = file.with_suffix(".new")
        new.write_text(json.dumps(counts()), encoding="utf-8")
        new.rename(file)

    signal.signal(signal.SIGUSR1, tell)


# Planted faults ----------------------------------------------------------------------------------


def lose_a_block() -> None:
    if one := engine():
        one.scheduler.pool.allocate(1)


def lose_a_feature() -> None:
    if one := engine():
        one.scheduler.encoder_cache.hold((b"", b"planted"))


def lose_a_task() -> None:
    kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))


def lose_a_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def lose_a_file() -> None:
    kept.append(os.open(os.devnull, os.O_RDONLY))


def lose_memory() -> None:
    kept.append(os.urandom(2**22))


def lose_a_child() -> None:
    kept.append(subprocess.Popen(["sleep", "600"]))


LEAKS: dict[str, Callable[[], None]] = {
    "block": lose_a_block,
    "feature": lose_a_feature,
    "task": lose_a_task,
    "thread": lose_a_thread,
    "file": lose_a_file,
    "memory": lose_memory,
    "child": lose_a_child,
}


def plant(leak: Callable[[], None]) -> None:
    """Have every tenth request that reaches the engine leak."""
    generation, seen = Service.generation, 0

    def leaking(service: Service, *args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen % EVERY == 0:
            leak()
        return generation(service, *args)

    setattr(Service, "generation", leaking)  # noqa: B010 - mypy takes no assignment to a method


def make_caches_small() -> None:
    loader.CACHE_BYTES = FRAME_BYTES
    memory.MAX_ENCODER_BYTES = FEATURE_BYTES


def compile_kernels_first() -> None:
    prepare = model_loader.prepare

    def prepare_and_compile(model: torch.nn.Module, **given: Any) -> Any:
        prepared = prepare(model, **given)
        layers = [each for each in model.modules() if isinstance(each, PackedLinear)]
        shapes = {(each.in_features, each.out_features): each for each in layers}
        with torch.inference_mode():
            for rows in sorted({padded_rows(count) for count in range(1, MAX_ROWS + 1)}):
                for each in shapes.values():
                    each(torch.zeros(rows, each.in_features))
        return prepared

    model_loader.prepare = prepare_and_compile


if __name__ == "__main__":
    counts_file, leak_name, *arguments = sys.argv[1:]
    make_caches_small()
    compile_kernels_first()
    if leak_name in LEAKS:
        plant(LEAKS[leak_name])
    tell_counts_to(Path(counts_file))
    sys.exit(cli.main(["serve", *arguments]))
