"""Text that is safe to send, whatever the split into tokens."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from litevl.api.detokenizer import Detokenizer

ALPHABET = "abé圆🙂"  # one to four bytes a character
texts = st.text(ALPHABET, max_size=30)
stops = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4).map(tuple)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def deltas(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """What is sent, one delta a token and one for the end, and whether a stop string came."""
    detokenizer = Detokenizer(pieces.__getitem__, stop)
    sent = [detokenizer.push(token) for token in range(len(pieces))]
    return [*sent, detokenizer.flush()], detokenizer.stopped


def cut_by_characters(text: str, stop: tuple[str, ...]) -> str:
    """The definition: read character by character until a stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(each) for each in stop if text[:end].endswith(each)]
        if starts:
            return text[: min(starts)]
    return text


@given(texts, st.lists(st.integers(0, 1000)), stops)
@example("aab", [1, 2], ("aab",))
@example("abab圆", [1, 3], ("bab圆", "ba圆"))
@example("abé圆", [], ("abé圆", "bé"))
def test_deltas_joined_are_the_text_up_to_the_first_stop_string(
    text: str, cuts: list[int], stop: tuple[str, ...]
) -> None:
    sent, stopped = deltas(split(text.encode(), cuts), stop)
    assert "".join(sent) == cut_by_characters(text, stop)
    assert stopped == any(each in text for each in stop)


@given(texts, st.lists(st.integers(0, 1000)))
def test_no_delta_holds_half_a_character(text: str, cuts: list[int]) -> None:
    sent, _ = deltas(split(text.encode(), cuts))
    assert "�" not in "".join(sent)


@given(st.binary(max_size=30), st.lists(st.integers(0, 1000)))
def test_bytes_that_are_no_text_become_replacement_characters(data: bytes, cuts: list[int]) -> None:
    sent, _ = deltas(split(data, cuts))
    assert "".join(sent) == data.decode(errors="replace")


def test_nothing_is_held_back_without_a_reason() -> None:
    assert deltas([b"Two", b" circles", b"."], ("STOP",))[0] == ["Two", " circles", ".", ""]


def test_what_could_become_a_stop_string_waits_until_it_cannot() -> None:
    assert deltas([b"one", b"\n", b"two"], ("\n\n",))[0] == ["one", "", "\ntwo", ""]


def test_tokens_after_the_stop_string_give_nothing() -> None:
    assert deltas([b"a STOP b", b"c"], ("STOP",)) == (["a ", "", ""], True)
