"""What just fits is kept, and no more is let go than has to be."""

from litevl.cache import Cache


def test_a_value_as_large_as_the_capacity_is_kept() -> None:
    cache: Cache[str, str] = Cache(5)
    cache.put("a", "value", 5)
    assert cache.get("a") == "value"


def test_no_more_is_let_go_than_makes_the_rest_fit() -> None:
    cache: Cache[str, str] = Cache(10)
    for name, cost in (("a", 4), ("b", 6), ("c", 4)):
        cache.put(name, "value", cost)
    assert [name in cache for name in "abc"] == [False, True, True]
    assert cache.used == 10
