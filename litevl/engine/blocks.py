"""The pool of KV blocks: who holds which block of the paged cache.

Pure Python: knows numbers of blocks, never their contents. Called only by `scheduler.py`.
"""


class BlockPool:
    """Hands out blocks and takes them back; at idle every block is free."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack whose top is the lowest block, so that a sequence's blocks mostly lie in a row.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has seen that so many are free."""
        if count > len(self._free):
            raise RuntimeError(f"asked for {count} KV blocks with {len(self._free)} free")
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._is_free[block] = False
        return blocks

    def free(self, blocks: list[int]) -> None:
        """Give blocks back; a block given back twice is our bug and raises."""
        for block in reversed(blocks):
            if self._is_free[block]:
                raise RuntimeError(f"KV block {block} freed twice")
            self._is_free[block] = True
            self._free.append(block)
