"""A tokenizer, its grammars, and a model that chooses at random among what a mask allows.

Used by `test_grammar.py`, which asks whether such a model writes what its grammar promised.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from litevl.models.grammar import Grammars
from litevl.sequence import Grammar, TokenMask

UNUSED = 70  # ids of the model beyond the tokenizer's
PARAM = "response_format.json_schema.schema"
MOST_TOKENS = 3000  # a walk that takes longer cannot end


@dataclass
class Bench:
    """A tokenizer, its grammars, and a model that chooses at random."""

    tokenizer: Tokenizer
    unused: int = UNUSED
    grammars: Grammars = field(init=False)

    def __post_init__(self) -> None:
        self.grammars = Grammars(
            self.tokenizer, vocab_size=self.vocab_size, eos_token_ids=frozenset(self.ends)
        )

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size() + self.unused

    @cached_property
    def ends(self) -> list[int]:
        return [self.id(token) for token in ("<|im_end|>", "<|endoftext|>")]

    @cached_property
    def bytes_ids(self) -> dict[str, int]:
        """Tokens of one ASCII character."""
        ids = range(self.tokenizer.get_vocab_size())
        texts = {i: self.tokenizer.decode([i]) for i in ids}
        return {text: i for i, text in texts.items() if len(text) == 1 and text.isascii()}

    def id(self, token: str) -> int:
        index = self.tokenizer.token_to_id(token)
        assert index is not None
        return index

    def compile(self, grammar: Grammar, *, after_thinking: bool = False) -> TokenMask:
        return self.grammars.compile(grammar, after_thinking=after_thinking, param=PARAM)

    def allowed(self, mask: TokenMask) -> list[int]:
        words = np.full(-(-self.vocab_size // 32), -1, dtype=np.int32)
        mask.fill(words)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        found: list[int] = np.flatnonzero(bits).tolist()
        return found

    def walk(self, mask: TokenMask, seed: int, *, hurry_after: int = 30, ending: str = "") -> str:
        """Choose at random until an end; then on what closes: brackets, quotes and `ending`."""
        rng = np.random.default_rng(seed)
        ids: list[int] = []
        while len(ids) < MOST_TOKENS:
            allowed = self.allowed(mask)
            assert allowed and max(allowed) < self.tokenizer.get_vocab_size()
            ends = [token for token in allowed if token in self.ends]
            is_hurried = len(ids) >= hurry_after
            if ends and (is_hurried or ends == allowed or rng.random() < 0.3):
                assert sorted(ends) == sorted(self.ends)  # any of them, whenever one
                mask.accept(int(rng.choice(ends)))
                assert self.allowed(mask) == sorted(self.ends)
                return self.tokenizer.decode(ids)
            closing = self._closing(ids, ending) if is_hurried else []
            choices = [token for token in allowed if token not in self.ends]
            wanted = next((token for token in closing if token in allowed), None)
            ids.append(int(rng.choice(choices)) if wanted is None else wanted)
            mask.accept(ids[-1])
        raise AssertionError("the grammar did not let the answer end")

    def _closing(self, ids: list[int], ending: str) -> list[int]:
        brackets = [self.bytes_ids[character] for character in '"]}']
        if self.tokenizer.token_to_id(ending) is not None:
            return [self.id(ending), *brackets]
        if ending:
            text = self.tokenizer.decode(ids[-2 * len(ending) :])
            begun = max(n for n in range(len(ending)) if text.endswith(ending[:n]))
            return [self.bytes_ids[ending[begun]], *brackets]
        return brackets
