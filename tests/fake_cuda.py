"""A CUDA card that is not there: real code on fake `cuda` tensors, and a guard over the step.

`FakeCard.loading()` is torch's `FakeTensorMode`: tensors on `cuda` have a shape, a dtype and a
device, and no data. `FakeCard.step()` adds the guard, which lets host arithmetic run for real and
raises `StepError` for what would wait for the card, or what its kernel would refuse.
Used by `test_cuda_fake.py`. Fake tensors cannot tell whether the numbers are right.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from litevl.engine.engine import Engine
from litevl.engine.runner import Launched, Runner
from litevl.models import loader
from litevl.models.attention import VarlenPaged
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import ChunkOutput, SampledToken, Step
from rig import LoggedRunner, Rig

CUDA = torch.device("cuda", 0)
HALVES = (torch.bfloat16, torch.float16)
MASKS = (torch.bool, torch.uint8)

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
DATA_DEPENDENT = (  # their result, or its shape, is known only once the card has done its work
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
)
VARLEN = torch.ops.torch_attn._varlen_attn.default


class StepError(AssertionError):
    """Something in the step would wait for the card, or be refused by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VarlenCall:
    """The arguments of one `varlen_attn`, as its CUDA kernel sees them."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seq_q: Tensor
    cu_seq_k: Tensor | None
    max_q: int
    max_k: int
    window_size: Sequence[int]
    enable_gqa: bool
    seqused_k: Tensor | None
    block_table: Tensor | None
    num_splits: int | None

    @property
    def is_paged(self) -> bool:
        return self.block_table is not None

    def check(self, *, dtypes: Sequence[torch.dtype] = HALVES, page: int = 256) -> None:
        """Raise StepError where torch's FlashAttention-2 would raise, or answer wrongly."""
        heads, head_dim = self.q.shape[1:]
        batch = len(self.cu_seq_q) - 1
        _require(self.q.dtype in dtypes, "q has a dtype without a kernel")
        _require(self.k.dtype == self.v.dtype == self.q.dtype, "q, k and v differ in dtype")
        _require(head_dim % 8 == 0 and head_dim <= 256, "head_dim is not a multiple of 8 up to 256")
        _require(
            all(t.stride(-1) == 1 for t in (self.q, self.k, self.v)), "rows are not contiguous"
        )
        _require(self.k.shape[-1] == head_dim == self.v.shape[-1], "head_dim differs")
        _require(self.enable_gqa or heads == self.k.shape[-2], "grouped heads without enable_gqa")
        _require(self.cu_seq_k is not None, "cu_seq_q without cu_seq_k")
        for offsets in (self.cu_seq_q, self.cu_seq_k):
            _require_ints(offsets, (batch + 1,), "cu_seq")
        _require(type(self.max_q) is int and type(self.max_k) is int, "max_q, max_k are no ints")
        _require(type(self.num_splits) is int, "num_splits is left to the kernel")
        if self.block_table is not None:
            _require(self.num_splits == 1, "a paged call with several splits answers wrongly")
            _require(self.k.shape[1] % page == 0, f"pages are no multiple of {page}")
            _require_ints(self.block_table, (batch, self.block_table.shape[-1]), "block_table")
            _require(self.block_table.shape[-1] * self.k.shape[1] >= self.max_k, "table too short")
            _require_ints(self.seqused_k, (batch,), "seqused_k")


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise StepError(complaint)


def _require_ints(tensor: Tensor | None, shape: tuple[int, ...], name: str) -> None:
    is_right = tensor is not None and tensor.dtype == torch.int32 and tensor.shape == shape
    _require(is_right and tensor.is_contiguous(), f"{name} is not a contiguous int32 {shape}")  # type: ignore[union-attr]


def _varlen_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: Sequence[int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> VarlenCall:
    """The operator's own signature, as positional arguments reach it."""
    return VarlenCall(
        q=q,
        k=k,
        v=v,
        cu_seq_q=cu_seq_q,
        cu_seq_k=cu_seq_k,
        max_q=max_q,
        max_k=max_k,
        window_size=window_size,
        enable_gqa=enable_gqa,
        seqused_k=seqused_k,
        block_table=block_table,
        num_splits=num_splits,
    )


def _is_on_card(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


class Guard(TorchDispatchMode):
    """Runs host operators for real, fake ones below it, and refuses what would wait in between."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.varlen_calls: list[VarlenCall] = []
        self._pinned: dict[int, Tensor] = {}  # by address; held, so that none is used twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten":
            with self:  # in inference mode `to`, `pin_memory` and their like arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is aten.is_pinned.default:  # there is no CUDA that could answer
            return self._is_pinned(args[0])
        if func is aten._pin_memory.default:
            return self._pin(args[0])
        is_asked_for = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if not is_asked_for and not any(map(_is_on_card, tensors)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        self._check(func, args, kwargs, tensors)
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise StepError(f"{func} waits for the card") from error

    def _check(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        _require(func not in DATA_DEPENDENT, f"{func} waits for the card")
        if func in COPIES:
            self._check_copy(func, args, kwargs)
            return
        stray = [each for each in tensors if each.dim() and not _is_on_card(each)]
        _require(not stray, f"{func} mixes a host tensor with those of the card")
        if func in INDEXING:
            indices = [each for each in args[1] if each is not None]
            _require(not any(each.dtype in MASKS for each in indices), "indexing by a mask waits")
            _require(all(map(_is_on_card, indices)), "indexing by a host tensor waits")
        if func is VARLEN:
            call = _varlen_call(*args, **kwargs)
            call.check()
            self.varlen_calls.append(call)

    def _check_copy(self, func: Any, args: Any, kwargs: Any) -> None:
        """Copies stay on the card, or go to it from pinned memory without waiting."""
        if func is aten.copy_.default:
            target, source = args[:2]
            to_card = _is_on_card(target)
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            source = args[0]
            to_card = torch.device(kwargs.get("device") or source.device).type == "cuda"
            non_blocking = kwargs.get("non_blocking", False)
        _require(to_card, "a copy to the host waits for the card")
        is_staged = non_blocking and self._is_pinned(source)
        _require(_is_on_card(source) or is_staged, "a copy to the card that is not staged waits")

    def _pin(self, tensor: Tensor) -> Tensor:
        with unset_fake_temporarily():
            copy = tensor.clone()
        self._pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not _is_on_card(tensor) and tensor.untyped_storage().data_ptr() in self._pinned


class FakeCard:
    """A fake card; tensors made under one of its contexts belong together."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Make and move tensors freely, as before the first step."""
        with self._fake:
            yield

    @contextmanager
    def step(self) -> Iterator[Guard]:
        """Run what a step runs; StepError for whatever would wait for the card."""
        with self._fake, Guard() as guard:
            yield guard


@dataclass
class FakeRig(Rig):
    """A rig whose litevl side is a bfloat16 model on a fake card; the reference is on the CPU."""

    device: torch.device = CUDA
    dtype: torch.dtype = torch.bfloat16
    card: FakeCard = field(default_factory=FakeCard)

    @cached_property
    def reference(self) -> Any:
        return Rig(self.folder).reference

    @cached_property
    def model(self) -> QwenVL:
        raw = Rig(self.folder, dtype=self.dtype).reference
        with self.card.loading():
            return loader.prepare(raw.to(self.device), device=self.device, backend=VarlenPaged())

    def engine(self, **sizes: Any) -> tuple[Engine, LoggedRunner]:
        with self.card.loading():
            return super().engine(**sizes)


@dataclass(frozen=True, slots=True)
class GuardedStep:
    """What a step left on the card; the host is told token 7 for every sequence."""

    launched: Launched
    varlen_calls: list[VarlenCall]

    def wait(self) -> list[ChunkOutput]:
        token = SampledToken(token_id=7)
        return [ChunkOutput(token=token if last else None) for last in self.launched.is_last]


@dataclass
class GuardedRunner:
    """A real runner, its `launch` under the guard; the steps are kept."""

    runner: Runner
    card: FakeCard
    steps: list[GuardedStep] = field(default_factory=list)

    def launch(self, step: Step) -> GuardedStep:
        with self.card.step() as guard:
            launched = self.runner.launch(step)
        self.steps.append(GuardedStep(launched, guard.varlen_calls))
        return self.steps[-1]

    def check_device(self) -> None:
        """There is none to be lost."""


def varlen_in_words(page: int) -> Callable[..., Tensor]:
    """`varlen_attn` as documented, in plain torch, for pages that are multiples of `page`."""

    def varlen_attn(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        **options: Any,
    ) -> Tensor:
        call = _varlen_call(
            q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window_size, **options
        )
        call.check(dtypes=(torch.float32, *HALVES), page=page)
        out = torch.full_like(q, torch.nan)  # rows of no sequence stay unwritten
        bounds = cu_seq_q.tolist()
        for row, (begin, end) in enumerate(pairwise(bounds)):
            keys, values = _segment(call, row)
            assert end - begin <= max_q and len(keys) <= max_k
            out[begin:end] = _attend(q[begin:end], keys, values, scale, window_size)
        return out

    return varlen_attn


def _segment(call: VarlenCall, row: int) -> tuple[Tensor, Tensor]:
    """The keys and values of one sequence: (length, kv heads, head_dim) each."""
    if call.block_table is not None and call.seqused_k is not None:
        pages, used = call.block_table[row].long(), int(call.seqused_k[row])
        return call.k[pages].flatten(0, 1)[:used], call.v[pages].flatten(0, 1)[:used]
    assert call.cu_seq_k is not None
    begin, end = call.cu_seq_k[row : row + 2].tolist()
    return call.k[begin:end], call.v[begin:end]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, window_size: Sequence[int]
) -> Tensor:
    """Attention of one sequence, spelt out; the last query is aligned with the last key."""
    left, right = window_size
    group = q.shape[1] // k.shape[1]
    keys, values = (each.repeat_interleave(group, dim=1).float() for each in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * (scale or q.shape[-1] ** -0.5)
    offset = len(k) - len(q)
    distance = torch.arange(len(k)) - torch.arange(len(q))[:, None] - offset  # 0: the query itself
    if right >= 0:
        scores = scores.masked_fill((distance > right).to(q.device), -torch.inf)
    if left >= 0:
        scores = scores.masked_fill((distance < -left).to(q.device), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), values).to(q.dtype)
