"""Logits to token ids, each row with its own parameters and its own seed.

A row's draw depends on its logits, its seed and its place in the answer alone, never on the batch:
one uniform number, made on the host from seed and place, is looked up in the row's own sorted
distribution. Penalties read per-row counts that live on the device, so nothing here waits for it.
Called by `runner.py`; knows no sequence but through its parameters and ids.
"""

from collections.abc import Sequence as Many
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from litevl.models.qwen_vl import stage
from litevl.sequence import Sequence

LARGEST = 1e30  # stands for infinity, since infinities have no difference
SORTED_PREFIX = 1024  # rows whose top_k is at most this need no full sort


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) from a seed and a place in the answer, the same on every machine."""
    digest = blake2b(f"{seed}:{place}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


class Sampler:
    """One model's sampler; its per-row state is allocated when the first penalty is asked for."""

    def __init__(self, vocab_size: int, max_num_seqs: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._max_num_seqs = max_num_seqs
        self._device = device
        self._in_prompt: Tensor | None = None  # (rows, vocabulary) bool
        self._counts: Tensor | None = None  # (rows, vocabulary) int32, of the output
        self._row_owner: dict[int, str] = {}

    def sample(self, logits: Tensor, sequences: Many[Sequence]) -> Tensor:
        """logits (S, vocabulary) float32, a row for each sequence -> token ids (S,) int64."""
        penalised = [i for i, each in enumerate(sequences) if each.params.has_penalties]
        if penalised:
            logits = self._penalise(logits, sequences, penalised)
        token_ids = logits.argmax(dim=-1)
        for rows in self._sampled_groups(sequences):
            drawn = self._draw(logits, rows, [sequences[row] for row in rows])
            token_ids = token_ids.index_copy(0, self._stage(rows, np.int64), drawn)
        if penalised:
            self._count(token_ids, sequences, penalised)
        return token_ids

    def _sampled_groups(self, sequences: Many[Sequence]) -> list[list[int]]:
        """Rows that are drawn rather than greedy, split by whether a full sort is needed."""
        groups: tuple[list[int], list[int]] = ([], [])
        for row, sequence in enumerate(sequences):
            params = sequence.params
            if not params.is_greedy:
                needs_sort = not 0 < params.top_k <= SORTED_PREFIX
                groups[needs_sort].append(row)
        return [rows for rows in groups if rows]

    def _draw(self, logits: Tensor, rows: list[int], sequences: Many[Sequence]) -> Tensor:
        """Draw one token for each of these rows: (len(rows),) int64."""
        params = [sequence.params for sequence in sequences]
        temperature = self._stage([each.temperature for each in params], np.float32)
        chosen = logits[self._stage(rows, np.int64)] / temperature[:, None]
        # Whatever a model or a penalty made of a row, it may not spoil its neighbours' step.
        chosen = chosen.nan_to_num(nan=-LARGEST, posinf=LARGEST, neginf=-LARGEST)
        widest = max(each.top_k or self._vocab_size for each in params)
        ranked, token_ids = chosen.topk(min(widest, self._vocab_size), dim=-1)
        top_k = self._stage([each.top_k or self._vocab_size for each in params], np.int64)
        rank = torch.arange(ranked.shape[1], device=self._device)
        ranked = ranked.masked_fill(rank >= top_k[:, None], -torch.inf)
        probs = ranked.softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs
        top_p = self._stage([each.top_p for each in params], np.float32)
        probs = probs.masked_fill((before >= top_p[:, None]) & (rank > 0), 0.0)
        cumulative = probs.cumsum(dim=-1)
        places = [len(each.output_token_ids) for each in sequences]
        draws = [uniform(p.seed, place) for p, place in zip(params, places, strict=True)]
        target = self._stage(draws, np.float32)[:, None] * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, target, right=True)
        # Rounding may carry the target past the last token that has any probability.
        last = (probs > 0).sum(dim=-1, keepdim=True) - 1
        return token_ids.gather(1, torch.minimum(index, last)).squeeze(1)

    def _penalise(self, logits: Tensor, sequences: Many[Sequence], rows: list[int]) -> Tensor:
        """Repetition over prompt and output, presence and frequency over output."""
        chosen = [sequences[row] for row in rows]
        in_prompt, counts = self._state(chosen)
        slots = self._stage([each.row for each in chosen], np.int64)
        index = self._stage(rows, np.int64)
        repetition, presence, frequency = (
            self._stage([getattr(each.params, name) for each in chosen], np.float32)[:, None]
            for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
        )
        own, seen = logits[index], counts[slots]
        repeated = torch.where(own > 0, own / repetition, own * repetition)
        own = torch.where(in_prompt[slots] | (seen > 0), repeated, own)
        own = own - frequency * seen - presence * (seen > 0)
        return logits.index_copy(0, index, own)

    def _count(self, token_ids: Tensor, sequences: Many[Sequence], rows: list[int]) -> None:
        _, counts = self._state([])
        slots = self._stage([sequences[row].row for row in rows], np.int64)
        one = torch.ones((), dtype=torch.int32, device=self._device)
        counts.index_put_((slots, token_ids[self._stage(rows, np.int64)]), one, accumulate=True)

    def _state(self, sequences: Many[Sequence]) -> tuple[Tensor, Tensor]:
        """The counts, brought up to date for sequences that have come into their row since."""
        if self._in_prompt is None or self._counts is None:
            shape = (self._max_num_seqs, self._vocab_size)
            self._in_prompt = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._counts = torch.zeros(shape, dtype=torch.int32, device=self._device)
        for sequence in sequences:
            if self._row_owner.get(sequence.row) != sequence.request_id:
                self._row_owner[sequence.row] = sequence.request_id
                self._fill_row(sequence, self._in_prompt, self._counts)
        return self._in_prompt, self._counts

    def _fill_row(self, sequence: Sequence, in_prompt: Tensor, counts: Tensor) -> None:
        prompt = np.zeros(self._vocab_size, dtype=bool)
        prompt[sequence.prompt.token_ids] = True
        output = np.bincount(
            np.asarray(sequence.output_token_ids, dtype=np.int64), minlength=self._vocab_size
        )
        in_prompt[sequence.row] = self._stage(prompt, np.bool_)
        counts[sequence.row] = self._stage(output, np.int32)

    def _stage(self, values: object, dtype: type[np.generic]) -> Tensor:
        return stage(np.asarray(values, dtype=dtype), self._device)
