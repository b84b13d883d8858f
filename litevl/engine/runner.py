"""One forward pass: encode what the step needs, pack it, run the model, sample.

`launch` reads nothing from the device; the tokens are read when `wait` is called. Called by
`engine.py`; knows nothing of queues, budgets or requests.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from litevl.cache import Cache
from litevl.engine.batch import PackedBatch, pack
from litevl.engine.sampler import Draw, Sampler
from litevl.errors import DeviceLostError
from litevl.models.attention import KVCache
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import ChunkOutput, MediaKey, Step

# How the host's allocator and cuBLAS say it.
NO_MEMORY = re.compile("can't allocate memory|STATUS_ALLOC_FAILED")
# How oneDNN does where it cannot map a new kernel. It keeps that error: no other kernel is made in
# this thread, however much memory there is later.
NO_KERNELS = re.compile("could not create a primitive$")


@dataclass(frozen=True, slots=True)
class Launched:
    """A step under way, of B chunks."""

    is_valid: Tensor  # (B,) bool
    is_last: tuple[bool, ...]  # of each chunk: a token was sampled at its end
    draw: Draw | None  # None when none was

    def wait(self) -> list[ChunkOutput]:
        """Block until the step is done; what came of each chunk, in order."""
        with _memory_told():
            tokens = iter(self.draw.read() if self.draw else ())
            return [
                ChunkOutput(is_valid=is_valid, token=next(tokens) if is_last else None)
                for is_valid, is_last in zip(self.is_valid.tolist(), self.is_last, strict=True)
            ]


class Runner:
    """Runs steps on one model. All calls come from the engine thread."""

    def __init__(
        self,
        model: QwenVL,
        cache: KVCache,
        sampler: Sampler,
        encoder_cache: Cache[MediaKey, Tensor],
    ) -> None:
        self._model = model
        self._cache = cache
        self._sampler = sampler
        self._encoder_cache = encoder_cache

    def launch(self, step: Step) -> Launched:
        """Start a step's forward pass. MemoryError when there is no room for it, even without all
        that is only kept; DeviceLostError when there will be none for any."""
        try:
            with _memory_told():
                return self._launch(step)
        except MemoryError:
            pass  # its frames hold what the attempt had allocated until this block is left
        self._encoder_cache.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        with _memory_told():
            return self._launch(step)

    def check_device(self) -> None:
        """DeviceLostError when it does not even add any more: a context once broken stays so."""
        try:
            torch.ones(1, device=self._model.device).add_(1).tolist()
        except RuntimeError as error:
            raise DeviceLostError(type(error).__name__) from error

    @torch.inference_mode()
    def _launch(self, step: Step) -> Launched:
        self._encode(step)
        batch = pack(step, self._cache, self._model.backend, self._model.device)
        hidden = self._model.forward(
            self._model.embed(batch.token_ids),
            batch.positions,
            batch.attention,
            batch.media_rows,
            self._features(batch),
        )
        ends = hidden.index_select(0, batch.ends)
        # A chunk's last row sees all keys and values of its sequence, so any NaN in them.
        is_valid = ~ends.isnan().any(dim=-1)
        is_last = tuple(chunk.is_last for chunk in step.chunks)
        if not batch.sampled:
            return Launched(is_valid, is_last, None)
        logits = self._model.logits(ends.index_select(0, batch.last))
        draw = self._sampler.sample(logits, batch.sampled)
        is_valid = is_valid.index_copy(0, batch.last, draw.is_valid)
        return Launched(is_valid, is_last, draw)

    def _encode(self, step: Step) -> None:
        if not step.encode:
            return
        encoded = self._model.encode([each.item for each in step.encode])
        for each, features in zip(step.encode, encoded, strict=True):
            self._encoder_cache.put(each.key, features, features.nbytes)

    def _features(self, batch: PackedBatch) -> Tensor:
        """The features of the batch's placeholder rows: (M, hidden * (1 + deepstack levels))."""
        spans = batch.media_spans
        if not spans:
            return torch.empty(0, device=self._model.device)
        return torch.cat([self._encoder_cache[s.key][s.start : s.stop] for s in spans])


@contextmanager
def _memory_told() -> Iterator[None]:
    """torch's errors about memory as Python's own."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise MemoryError from None
    except RuntimeError as error:
        if NO_MEMORY.search(str(error)):
            raise MemoryError from None
        if NO_KERNELS.search(str(error)):
            raise DeviceLostError("no more kernels can be made") from None
        raise
