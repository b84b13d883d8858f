"""Turns are short while something large is read, whoever else reads, and usual afterwards."""

import sys
from functools import partial

import pytest

from litevl.turns import SHORT_S, USUAL_S, in_short_turns


def test_turns_are_short_until_the_last_work_is_done_and_usual_after_it() -> None:
    def fail() -> None:
        in_short_turns(lambda: None)
        assert sys.getswitchinterval() == pytest.approx(SHORT_S)
        raise ValueError

    with pytest.raises(ValueError):
        in_short_turns(partial(in_short_turns, fail))
    assert sys.getswitchinterval() == pytest.approx(USUAL_S)
