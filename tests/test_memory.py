"""The KV plan takes what the machine has, and says in numbers when that is too little."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from litevl.cache import Cache
from litevl.config import Config
from litevl.engine import memory
from litevl.engine.memory import KVPlan, plan_kv
from litevl.engine.runner import Launched, Runner
from litevl.errors import ConfigError
from litevl.machine import Memory
from litevl.sequence import MediaKey, Step

MIB = 2**20


def plan(budget: int = 64 * MIB, asked_len: int | None = None, **changes: int | None) -> KVPlan:
    settings: dict[str, int | None] = {
        "bytes_per_block": MIB,
        "block_size": 16,
        "model_len": 4096,
        "asked_len": asked_len,
        "asked_blocks": None,
        "max_num_seqs": 4,
    }
    return plan_kv(budget=budget, **(settings | changes))  # type: ignore[arg-type]


def test_the_context_shrinks_to_what_memory_fits() -> None:
    assert plan().max_model_len == 64 * 16


def test_no_more_blocks_than_the_sequences_can_use() -> None:
    assert plan(budget=10**6 * MIB).num_blocks == 4 * 4096 // 16


def test_blocks_by_hand_are_taken_as_given() -> None:
    assert plan(asked_blocks=7).num_blocks == 7


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 4096"):
        plan(asked_len=5000)


def test_a_context_beyond_memory_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"needs 128 MiB .* 64 MiB can be had, enough for 1024"):
        plan(asked_len=2048)


def test_a_context_that_just_fits_is_given() -> None:
    assert plan(asked_len=1024).max_model_len == 1024
    assert plan(budget=256 * MIB, asked_len=4096).max_model_len == 4096


def test_no_memory_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="lower --max-model-len"):
        plan(budget=MIB // 2)


@given(st.integers(1, 10**4), st.integers(16, 4096), st.integers(1, 64))
def test_a_whole_context_always_fits_the_blocks(mib: int, length: int, seqs: int) -> None:
    try:
        made = plan(budget=mib * MIB, asked_len=length, max_num_seqs=seqs)
    except ConfigError:
        assert mib * 16 < length
        return
    assert made.max_model_len == length <= made.num_blocks * 16
    assert made.num_bytes <= mib * MIB


@pytest.mark.parametrize(("free", "budget"), [(4096, 960), (256, 0), (100, 0)])
def test_on_the_cpu_kernels_that_are_still_to_come_are_counted_before_the_cache(
    free: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory", lambda: Memory(total=0, free=free * MIB))
    model: Any = SimpleNamespace(device=torch.device("cpu"))
    assert memory.kv_budget(model, Config(), 4096) == budget * MIB


@dataclass
class Card:
    """A CUDA card: what torch says of it after the largest step, in MiB."""

    free: int
    reserved: int  # by us
    peak: int
    total: int = 80_000
    peak_so_far: int = 75_000  # while the weights were loaded

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: dict[str, Callable[[torch.device], object]] = {
            "mem_get_info": lambda device: (self.free * MIB, self.total * MIB),
            "memory_reserved": lambda device: self.reserved * MIB,
            "max_memory_allocated": lambda device: self.peak_so_far * MIB,
            "reset_peak_memory_stats": self._reset_peak,
            "synchronize": lambda device: None,
        }
        for name, call in calls.items():
            monkeypatch.setattr(torch.cuda, name, call)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(memory, "run_largest_step", self._run_largest_step)

    def _reset_peak(self, device: torch.device) -> None:
        self.peak_so_far = 0

    def _run_largest_step(self, model: object, **sizes: int) -> None:
        self.peak_so_far = max(self.peak_so_far, self.peak)


@pytest.mark.parametrize(
    ("card", "budget"),
    [
        (Card(free=60_000, reserved=20_000, peak=22_000), 72_000 - 22_000),  # we are alone
        (Card(free=30_000, reserved=20_000, peak=22_000), 72_000 - 22_000 - 30_000),
        (Card(free=2_000, reserved=20_000, peak=22_000), 0),
    ],
)
def test_on_a_card_neither_the_largest_step_nor_what_others_hold_is_planned_for(
    card: Card, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.install(monkeypatch)
    model: Any = SimpleNamespace(device=torch.device("cuda"))
    assert memory.kv_budget(model, Config(), 4096) == budget * MIB


@pytest.mark.parametrize(
    ("budget", "features", "blocks"), [(800, 100, 700), (16 * 1024, 1024, 15 * 1024)]
)
def test_features_and_blocks_share_one_budget_of_which_features_take_a_bounded_part(
    budget: int, features: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "kv_budget", lambda model, config, length: budget * MIB)
    model: Any = SimpleNamespace(
        config=SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=2**20)),
        backend=SimpleNamespace(block_size=16),
        kv_bytes_per_block=lambda: MIB,
    )
    made = memory.plan_for(model, Config())
    assert (made.encoder_bytes, made.num_bytes) == (features * MIB, blocks * MIB)


@given(st.integers(1, 10**4))
def test_the_largest_picture_has_no_fewer_features_than_asked(count: int) -> None:
    vision = SimpleNamespace(
        spatial_merge_size=2, temporal_patch_size=2, patch_size=1, in_channels=3
    )
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    assert memory.largest_item(model, count).num_tokens >= count


def test_a_step_without_memory_is_tried_again_without_what_is_only_kept() -> None:
    features: Cache[MediaKey, torch.Tensor] = Cache(10**6)
    features.put((b"", b"picture"), torch.zeros(10), 40)
    model: Any = SimpleNamespace(device=torch.device("cpu"))
    none: Any = None
    tried: list[weakref.ref[torch.Tensor]] = []

    class Short(Runner):
        def _launch(self, step: Step) -> Launched:
            kept = len(features) + sum(each() is not None for each in tried)
            activations = torch.zeros(10)
            tried.append(weakref.ref(activations))
            if kept:
                raise torch.OutOfMemoryError
            return Launched(torch.ones(0, dtype=torch.bool), (), None)

    assert Short(model, none, none, features).launch(Step(chunks=())).wait() == []
    assert len(tried) == 2
