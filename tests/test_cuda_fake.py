"""The CUDA path without a card: real steps on fake tensors, real numbers with a kernel in words."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from device_checks import (
    CASES,
    CPU,
    PagedCase,
    around,
    check_decodes,
    check_error,
    check_greedy,
    check_memory_plan,
    check_never_waits,
    check_paged_attention,
    check_sampling,
    check_vision,
    run_every_kind_of_step,
)
from fake_cuda import CUDA, FakeCard, FakeRig, GuardedRunner, StepError, varlen_in_words
from litevl.engine.batch import lying_lens
from litevl.engine.memory import run_largest_step
from litevl.engine.sampler import Sampler
from litevl.models import attention, loader
from litevl.models.attention import (
    VISION_ATTENTION,
    AttentionBackend,
    SdpaPaged,
    VarlenPaged,
    stage,
)
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import Sequence
from rig import LoggedRunner, Rig, greedy
from tiny_models import FAMILIES, Family, make_checkpoint

PAGE = 16
LAYERS = 4  # layers of the tiny towers, and of the tiny language models


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family: Family = request.param
    return make_checkpoint(family, tmp_path_factory.mktemp(family))


# On a fake card --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fake(folder: Path) -> FakeRig:
    return FakeRig(folder)


@pytest.fixture(scope="module")
def guarded(fake: FakeRig) -> tuple[GuardedRunner, LoggedRunner]:
    """What every kind of step did under the guard; it raises where a step would wait."""
    engine, logged = fake.engine(num_blocks=40, max_tokens=24, encoder_tokens=16)
    runner = GuardedRunner(logged, fake.card)
    run_every_kind_of_step(fake, around(engine, runner))
    return runner, logged


def test_no_step_waits_for_the_card(guarded: tuple[GuardedRunner, LoggedRunner]) -> None:
    runner, logged = guarded
    assert logged.mixed and logged.cut_media
    launched = [step.launched for step in runner.steps]
    draws = [each.draw for each in launched if each.draw]
    answers = [draw.token_ids for draw in draws]
    assert {each.is_valid.device for each in launched} == {CUDA}
    assert any(draw.logprobs and draw.logprobs.chosen.device == CUDA for draw in draws)
    assert all((each.device, each.dtype) == (CUDA, torch.int64) for each in answers)
    assert max(len(each) for each in answers) == 6


def test_all_attention_is_varlen_in_bfloat16(guarded: tuple[GuardedRunner, LoggedRunner]) -> None:
    runner, logged = guarded
    for step, (lengths, num_encoded) in zip(runner.steps, logged.steps, strict=True):
        text = [call for call in step.varlen_calls if call.is_paged]
        vision = [call for call in step.varlen_calls if not call.is_paged]
        assert len(text) == LAYERS and len(vision) == LAYERS * bool(num_encoded)
        assert all(tuple(call.window_size) == (-1, 0) for call in text)
        assert all(tuple(call.window_size) == (-1, -1) for call in vision)
        assert all((call.max_q, len(call.q)) == (max(lengths), sum(lengths)) for call in text)
        assert all(call.k.shape[1] == 256 and call.num_splits == 1 for call in text)
        assert {call.q.dtype for call in step.varlen_calls} == {torch.bfloat16}


def test_features_and_logits_have_the_promised_shapes(fake: FakeRig) -> None:
    prompt = fake.image_prompt([(1, 4, 6), 3, (1, 8, 8)])
    with fake.card.step(), torch.inference_mode():
        features = fake.model.encode(prompt.media)
        logits = fake.model.logits(torch.zeros(3, 64, dtype=torch.bfloat16, device=CUDA))
    width = fake.model.hidden_size * (1 + fake.model.num_deepstack_levels)
    assert [tuple(each.shape) for each in features] == [(6, width), (16, width)]
    assert {(each.device, each.dtype) for each in features} == {(CUDA, torch.bfloat16)}
    assert (logits.shape[0], logits.device, logits.dtype) == (3, CUDA, torch.float32)


def test_the_largest_step_of_the_memory_plan_runs(
    fake: FakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sorted the logits and no more: a quarter of what real sampling needs."""
    sampled: list[Sequence] = []
    sample = Sampler.sample

    def noting(self: Sampler, logits: Tensor, sequences: list[Sequence]) -> object:
        sampled.extend(sequences)
        return sample(self, logits, sequences)

    monkeypatch.setattr(Sampler, "sample", noting)
    with fake.card.step() as guard:
        run_largest_step(fake.model, max_tokens=600, max_media_tokens=64, max_num_seqs=8)
    assert len(sampled) == 8
    assert all(each.params.has_penalties and each.params.logprobs for each in sampled)
    assert [call.max_q for call in guard.varlen_calls if call.is_paged] == [600] * LAYERS
    assert max(len(call.q) for call in guard.varlen_calls if not call.is_paged) >= 64 * 4


# The guard -------------------------------------------------------------------------------------


def on_card(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=CUDA)


def mask() -> Tensor:
    return on_card(3, dtype=torch.bool)


VIOLATIONS: dict[str, Callable[[], object]] = {
    "item": lambda: on_card(1).item(),
    "tolist": lambda: on_card(3).tolist(),
    "cpu": lambda: on_card(3).cpu(),
    "to host, not waited for": lambda: on_card(3).to("cpu", non_blocking=True),
    "copy into a host tensor": lambda: torch.zeros(3).copy_(on_card(3)),
    "int": lambda: int(on_card(3).argmax()),
    "truth": lambda: bool(on_card(3).any()),
    "index of a list": lambda: [1, 2, 3][on_card(1, dtype=torch.int64)],
    "equal": lambda: torch.equal(on_card(3), on_card(3)),
    "nonzero": lambda: mask().nonzero(),
    "unique": lambda: on_card(3).unique(),
    "repeats": lambda: on_card(3).repeat_interleave(on_card(3, dtype=torch.int64)),
    "tensor": lambda: torch.tensor([1, 2], device=CUDA),
    "as_tensor": lambda: torch.as_tensor([1, 2], device=CUDA),
    "pageable copy": lambda: torch.arange(3).to(CUDA, non_blocking=True),
    "pinned copy that waits": lambda: torch.arange(3).pin_memory().to(CUDA),
    "copy from a host tensor": lambda: on_card(3).copy_(torch.zeros(3)),
    "host operand": lambda: on_card(3) + torch.zeros(3),
    "index by a list": lambda: on_card(3)[[0, 2]],
    "index by a host tensor": lambda: on_card(3)[torch.tensor([0, 2])],
    "index by a mask": lambda: on_card(3)[mask()],
    "write by a mask": lambda: on_card(3).index_put_((mask(),), on_card(1)),
    "fill by a mask": lambda: on_card(3).__setitem__(mask(), 0.0),
    "masked_select": lambda: on_card(3).masked_select(mask()),
}


@pytest.mark.parametrize("name", VIOLATIONS)
@pytest.mark.parametrize("inference", [True, False], ids=["inference", "plain"])
def test_the_guard_refuses_what_waits(name: str, inference: bool) -> None:
    card = FakeCard()
    with card.step(), torch.inference_mode(inference), pytest.raises(StepError):
        VIOLATIONS[name]()


def test_the_guard_lets_staged_copies_and_host_arithmetic_pass() -> None:
    with FakeCard().step(), torch.inference_mode():
        host = torch.tensor([2, 0])
        assert host[host > 0].tolist() == [2]
        staged = stage(host, CUDA)
        assert staged.device == CUDA
        assert on_card(3)[staged].shape == (2,)
        assert torch.where(mask(), on_card(3), 0.0).masked_fill(mask(), 1.0).device == CUDA


def test_only_wait_reads_the_tokens(fake: FakeRig) -> None:
    engine, runner = fake.engine(num_blocks=4)
    engine.scheduler.add(greedy(fake.image_prompt([5]), "short", 1))
    step = engine.scheduler.schedule()
    assert step is not None
    with fake.card.step():
        launched = runner.launch(step)
        with pytest.raises(StepError):
            launched.wait()


# With a kernel in words, on the CPU ------------------------------------------------------------


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """`varlen_attn` as documented, for pages of 16 instead of 256 tokens."""
    monkeypatch.setattr(attention, "varlen_attn", varlen_in_words(PAGE))


def small_pages() -> VarlenPaged:
    backend = VarlenPaged()
    backend.block_size = PAGE
    return backend


class VarlenRig(Rig):
    """A rig whose litevl side takes every turn that it takes on CUDA, on the CPU in float32."""

    @cached_property
    def model(self) -> QwenVL:
        raw = Rig(self.folder).reference
        return loader.prepare(raw, device=CPU, backend=small_pages())


@pytest.mark.usefixtures("kernel")
def test_greedy_tokens_of_the_cuda_path_are_those_of_generate(folder: Path) -> None:
    check_greedy(VarlenRig(folder))


every_backend = pytest.mark.parametrize(
    "backend",
    [small_pages(), SdpaPaged(16, view_from=10**6), SdpaPaged(16, view_from=1)],
    ids=["varlen", "gathered", "in place"],
)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_backend
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_paged_attention_is_that_of_each_sequence(
    case: PagedCase, backend: AttentionBackend, dtype: torch.dtype
) -> None:
    check_paged_attention(case, backend, CPU, dtype)


def test_a_chunk_gathers_its_own_blocks_alone_however_long_the_contexts_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, widths = attention._gather, []

    def gather(blocks: Tensor, table: Tensor, length: int) -> Tensor:
        widths.append(table.shape[1])
        return plain(blocks, table, length)

    monkeypatch.setattr(attention, "_gather", gather)
    case = PagedCase(query_lens=(1, 16), context_lens=(1000, 80))
    check_paged_attention(case, SdpaPaged(PAGE, view_from=10**6), CPU, torch.float32)
    assert widths == [80 // PAGE] * 2  # keys and values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_never_read_in_place_for_that_rounds_otherwise(
    dtype: torch.dtype,
) -> None:
    in_a_row, backend = np.arange(20, dtype=np.int32)[None], SdpaPaged(PAGE, view_from=1)
    assert lying_lens(in_a_row, (300,), backend, torch.float32) == (300,)
    assert lying_lens(in_a_row, (300,), backend, dtype) == (0,)


@pytest.mark.usefixtures("kernel")
@every_backend
def test_200_paged_decodes_are_right_and_finite(backend: AttentionBackend) -> None:
    check_decodes(backend, CPU, torch.float32)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_vision_tower_sees_the_same_as_with_sdpa(folder: Path, dtype: torch.dtype) -> None:
    check_vision(folder, VISION_ATTENTION, CPU, dtype)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_kernel_told_to_split_is_refused(
    case: PagedCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = varlen_in_words(PAGE)

    def split(*args: object, **options: object) -> Tensor:
        return words(*args, **options | {"num_splits": 2})

    monkeypatch.setattr(attention, "varlen_attn", split)
    with pytest.raises(StepError, match="splits"):
        check_paged_attention(case, small_pages(), CPU, torch.float32)


# The other bodies of test_gpu.py --------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(folder: Path) -> Rig:
    return Rig(folder)


def test_every_kind_of_step_runs_on_the_cpu_too(plain: Rig) -> None:
    check_never_waits(plain)


def test_greedy_tokens_in_bfloat16_differ_from_generate_in_near_ties_only(folder: Path) -> None:
    check_greedy(Rig(folder, dtype=torch.bfloat16))


def test_a_draw_does_not_depend_on_its_batch(plain: Rig) -> None:
    check_sampling(plain)


def test_the_planned_cache_fits(plain: Rig) -> None:
    check_memory_plan(plain.model)


def test_an_unwritten_or_wrong_row_is_an_error() -> None:
    exact = torch.randn(50, 4, 64, dtype=torch.float64)
    near, nan, wrong = exact.bfloat16(), exact.bfloat16(), exact.bfloat16()
    check_error(near, near, exact)
    nan[7], wrong[7] = torch.nan, near[8]
    for bad in (nan, wrong):
        with pytest.raises(AssertionError):
            check_error(bad, near, exact)
