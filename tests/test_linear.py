"""Packed layers compute what the plain ones do, whatever the number of rows."""

import pytest
import torch
from torch import nn

from litevl.models import linear
from litevl.models.linear import LEAST_ROWS, PackedLinear, PatchEmbed, pack_linears, padded_rows


@pytest.mark.parametrize("least", [1, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("lead", [(), (1,), (2,)], ids=str)
def test_few_rows_give_what_the_plain_layer_gives(
    lead: tuple[int, ...], rows: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows are padded where that is faster: the padding may not be seen outside."""
    monkeypatch.setattr(linear, "LEAST_ROWS", least)
    torch.manual_seed(0)
    plain = nn.Linear(32, 48)
    x = torch.randn(*lead, rows, 32)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(plain)(x), plain(x), rtol=1e-5, atol=1e-5)


def test_few_counts_of_rows_reach_the_kernels_and_none_is_much_too_large() -> None:
    counts = range(LEAST_ROWS, 20_000)
    assert all(rows <= padded_rows(rows) <= rows * 5 / 4 for rows in counts)
    assert len({padded_rows(rows) for rows in counts}) < 55
    assert [padded_rows(rows) for rows in range(5, 13)] == [5, 6, 7, 8, 10, 10, 12, 12]


@pytest.mark.parametrize("bias", [False, True])
def test_patches_times_a_matrix_are_what_the_convolution_makes_of_them(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 32, (2, 14, 14), (2, 14, 14), bias=bias).requires_grad_(False)
    embed = PatchEmbed(conv)
    patches = torch.rand(37, 3 * 2 * 14 * 14)
    expected = conv(patches.view(-1, 3, 2, 14, 14)).view(-1, 32)
    torch.testing.assert_close(embed(patches), expected, rtol=1e-5, atol=1e-5)
    pack_linears(embed)
    torch.testing.assert_close(embed(patches), expected, rtol=1e-5, atol=1e-5)
