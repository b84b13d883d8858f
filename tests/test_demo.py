"""The bundled model sees: on fresh scenes it tells colours and counts, and on grey ones it cannot.

`make eval` asks about many more; here few suffice to tell a model that sees from one that does not.
"""

import pytest

from live import KEY, LiveServer
from training import evaluate

SEED, NUM_CASES = 7, 24


def accuracy(server: LiveServer, ability: str) -> float:
    ask = evaluate.server(server.base_url, KEY)
    fresh = [evaluate.draw_case(SEED, ability, k) for k in range(NUM_CASES)]
    return sum(case.right(ask(case)) for case in fresh) / NUM_CASES


@pytest.mark.parametrize(("ability", "floor"), [("colour", 0.85), ("count_to_four", 0.85)])
def test_the_demo_sees_and_falls_to_chance_on_grey_pictures(
    server: LiveServer, ability: str, floor: float
) -> None:
    assert accuracy(server, ability) >= floor
    assert accuracy(server, f"grey_{ability}") <= 0.4


@pytest.mark.parametrize(
    ("ability", "floor"),
    [("where", 0.8), ("clip_describe", 0.75), ("box", 0.85), ("word", 0.7), ("about", 0.7)],
)
def test_the_demo_tells_where_and_what_moves_reads_and_says_what_it_cannot_do(
    server: LiveServer, ability: str, floor: float
) -> None:
    assert accuracy(server, ability) >= floor
