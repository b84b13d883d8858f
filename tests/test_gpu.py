"""On a real card what `test_cuda_fake.py` shows without one: `make test-gpu`.

The bodies are in `device_checks.py`, where `test_cuda_fake.py` runs them on the CPU.
"""

from pathlib import Path

import pytest
import torch

from device_checks import (
    CASES,
    PREFILL,
    PagedCase,
    check_decodes,
    check_greedy,
    check_memory_plan,
    check_never_waits,
    check_paged_attention,
    check_sampling,
    check_vision,
)
from litevl.models.attention import VISION_ATTENTION, SdpaPaged, VarlenPaged
from rig import Rig
from tiny_models import FAMILIES, Family, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # what a driver or a card warns of is not under test
]

if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA card here", allow_module_level=True)

CUDA = torch.device("cuda", 0)
BF16 = torch.bfloat16


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family: Family = request.param
    return make_checkpoint(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def rig(folder: Path) -> Rig:
    return Rig(folder, device=CUDA, dtype=BF16)


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_paged_varlen_attention_is_that_of_each_sequence(
    case: PagedCase, dtype: torch.dtype
) -> None:
    check_paged_attention(case, VarlenPaged(), CUDA, dtype)


def test_paged_sdpa_is_right_on_the_card_too() -> None:
    check_paged_attention(PREFILL, SdpaPaged(), CUDA, BF16)


def test_200_paged_decodes_are_right_and_finite() -> None:
    check_decodes(VarlenPaged(), CUDA, BF16)


def test_greedy_tokens_are_those_of_generate(rig: Rig) -> None:
    check_greedy(rig)


def test_the_vision_tower_sees_the_same_as_with_sdpa(folder: Path) -> None:
    check_vision(folder, VISION_ATTENTION, CUDA, BF16)


def test_no_step_waits_for_the_card(rig: Rig) -> None:
    check_never_waits(rig)


def test_a_draw_does_not_depend_on_its_batch(rig: Rig) -> None:
    check_sampling(rig)


def test_the_planned_cache_fits_beside_the_largest_step(rig: Rig) -> None:
    check_memory_plan(rig.model)
