"""The pool of KV blocks: who holds which block of the paged cache, and what full blocks hold.

A full block whose keys and values are computed can be registered under the hash of everything that
decided them: then whoever begins with the same tokens shares it. A block nobody holds keeps its
contents until it is needed, least recently used first. Pure Python: knows numbers of blocks and
hashes, never contents. Called only by `scheduler.py`; `Chain` names a sequence's blocks.
"""

from collections import OrderedDict
from hashlib import blake2b

import numpy as np

from litevl.sequence import Sequence


class BlockPool:
    """Hands out blocks, shares full ones and takes them back; at idle nobody holds any."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack whose top is the lowest block, so that a sequence's blocks mostly lie in a row.
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # free but named, oldest first
        self._holders = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, named ones included."""
        return len(self._blank) + len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has seen that so many are free."""
        if count > self.num_free:
            raise RuntimeError(f"asked for {count} KV blocks with {self.num_free} free")
        blocks = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def free(self, blocks: list[int]) -> None:
        """Let go of blocks; one let go too often is our bug and raises."""
        # The last first: of a chain that is given up, the beginning is worth keeping longest.
        for block in reversed(blocks):
            if not self._holders[block]:
                raise RuntimeError(f"KV block {block} freed twice")
            self._holders[block] -= 1
            if not self._holders[block]:
                self._put_back(block)

    # Shared blocks -----------------------------------------------------------------------------

    def register(self, block: int, block_hash: bytes) -> None:
        """Name a full, computed block. Where two were computed alike, the first keeps the name."""
        if block_hash not in self._block_of and block not in self._hash_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def find(self, block_hash: bytes) -> int | None:
        """The block of that name, held by somebody or not."""
        return self._block_of.get(block_hash)

    def share(self, blocks: list[int]) -> None:
        """Hold blocks that were found."""
        for block in blocks:
            self._cached.pop(block, None)
            self._holders[block] += 1

    def forget(self, blocks: list[int]) -> None:
        """Take the names of held blocks away, whose contents proved to be bad."""
        for block in blocks:
            if block_hash := self._hash_of.pop(block, None):
                del self._block_of[block_hash]

    def num_unheld(self, blocks: list[int]) -> int:
        """How many of these sharing would take out of the free ones."""
        return sum(not self._holders[block] for block in blocks)

    def _put_back(self, block: int) -> None:
        if block in self._hash_of:
            self._cached[block] = None
        else:
            self._blank.append(block)

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block


class Chain:
    """The names of a sequence's blocks: each hashes all that lies before it and its own tokens.

    A placeholder is named by its picture's digest, so equal text around another picture is another
    name; the chain begins with the scope. Places in the picture and positions follow from these.
    """

    def __init__(self, sequence: Sequence, block_size: int) -> None:
        self._sequence = sequence
        self._block_size = block_size
        self._root = blake2b(sequence.scope, digest_size=16).digest()
        self._names: list[bytes] = []
        self._digests: dict[int, bytes] = {}  # of the pictures that a block has placeholders of
        for item in sequence.prompt.media:
            for place in np.unique(item.token_indices // block_size).tolist():
                self._digests[place] = self._digests.get(place, b"") + item.digest

    def names(self, count: int) -> list[bytes]:
        """The names of the first `count` blocks, all of whose tokens must be known."""
        while len(self._names) < count:
            before = self._names[-1] if self._names else self._root
            name = blake2b(before, digest_size=16)
            name.update(self._contents(len(self._names)))
            self._names.append(name.digest())
        return self._names[:count]

    def _contents(self, place: int) -> bytes:
        prompt, start = self._sequence.prompt, place * self._block_size
        end = start + self._block_size
        first = max(start - len(prompt), 0)
        tail = self._sequence.output_token_ids[first : max(end - len(prompt), 0)]
        ids = prompt.token_ids[start:end].tobytes() + np.asarray(tail, np.int64).tobytes()
        return ids + self._digests.get(place, b"")
