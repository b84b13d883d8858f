"""What a scheduler's clients know from outside: prompts in short spelling, and exact histories.

A history (scope, ids, media and places in them) is interned as one number, so that "these blocks
hold these tokens" is an equality of integers. Used by `test_scheduler_machine.py`.
"""

from dataclasses import dataclass, field

import numpy as np

from litevl.sequence import Chunk, MediaItem, Prompt, Sequence

# A prompt is spelt with these: text in lower case, media in capitals (Z is a clip with timestamps).
MEDIA_PAD = 9
SPELLING = {
    "a": (1,),
    "b": (2,),
    "t": (1, 2, 2, 1, 1),
    "X": (MEDIA_PAD,) * 3,
    "Y": (MEDIA_PAD,) * 7,
    "Z": (MEDIA_PAD, MEDIA_PAD, 1, MEDIA_PAD, MEDIA_PAD),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How small everything is. Blocks and costs in tokens."""

    num_blocks: int
    block_size: int
    max_seqs: int
    max_tokens: int
    max_encoder_tokens: int
    capacity: int

    @property
    def max_model_len(self) -> int:
        return self.num_blocks * self.block_size


class Histories:
    """Interns histories: equal numbers mean equal scope, ids, media and places in them."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, object], int] = {}

    def extend(self, history: int, element: object) -> int:
        return self._numbers.setdefault((history, element), len(self._numbers))

    def of(self, scope: bytes, prompt: Prompt) -> list[int]:
        """The history that ends with each token of a prompt."""
        places = {
            int(index): (item.digest, place)
            for item in prompt.media
            for place, index in enumerate(item.token_indices)
        }
        history, histories = self.extend(-1, scope), []
        for index, token in enumerate(prompt.token_ids.tolist()):
            history = self.extend(history, places.get(index, token))
            histories.append(history)
        return histories


def spell(letters: str) -> Prompt:
    ids: list[int] = []
    media: list[MediaItem] = []
    for letter in letters:
        if letter.isupper():
            pads = [i for i, token in enumerate(SPELLING[letter], len(ids)) if token == MEDIA_PAD]
            media.append(media_item(letter, pads))
        ids += SPELLING[letter]
    return Prompt(
        token_ids=np.array(ids, dtype=np.int64),
        positions=np.zeros((3, 0), dtype=np.int64),
        position_delta=0,
        media=tuple(media),
    )


def media_item(letter: str, token_indices: list[int]) -> MediaItem:
    return MediaItem(
        kind="video" if letter == "Z" else "image",
        digest=letter.encode() * 16,
        token_indices=np.array(token_indices, dtype=np.int64),
        pixels=np.zeros((0, 0), dtype=np.uint8),
        mean=(0.0,),
        std=(1.0,),
        grid=(1, 2, 2),
    )


@dataclass(eq=False)
class Client:
    """One sequence, and what is known of it from outside the scheduler."""

    sequence: Sequence
    letters: str
    histories: list[int]  # one a known token
    salt: int  # what sets apart the answers to one prompt
    known_at_start: int = 0  # tokens, when it last began to run
    was_preempted: bool = False
    held: list[MediaItem] = field(default_factory=list)  # touched since then, and not yet passed

    def touched(self, chunk: Chunk) -> list[MediaItem]:
        return [
            item
            for item in self.sequence.prompt.media
            if item.token_indices[0] < chunk.end and item.token_indices[-1] >= chunk.start
        ]

    def common(self, other: "Client") -> int:
        """How many tokens the two histories share."""
        pairs = zip(self.histories, other.histories, strict=False)
        return sum(mine == theirs for mine, theirs in pairs)
