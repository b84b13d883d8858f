"""Packed layers compute what the plain ones do, whatever the number of rows."""

import pytest
import torch
from torch import nn

from litevl.models import linear
from litevl.models.linear import PackedLinear


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
