"""Logits to tokens, each row with its own parameters and its own seed.

A row's draw depends on its logits, its seed and its place in the answer alone, never on the batch:
one uniform number, made on the host from seed and place, is looked up in the row's own sorted
distribution. Nothing here reads from the device; `Draw.read` does, when the step is collected.
Called by `runner.py`; knows no sequence but through its parameters and ids.
"""

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from litevl.engine.logits import LogitsProcessor
from litevl.models.qwen_vl import stage
from litevl.sequence import SampledToken, Sequence, TokenLogprobs

LARGEST = 1e30  # stands for infinity, since infinities have no difference
SORTED_PREFIX = 1024  # rows whose top_k is at most this need no full sort


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) from a seed and a place in the answer, the same on every machine."""
    digest = blake2b(f"{seed}:{place}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """Of the R rows that asked, under their raw logits."""

    rows: tuple[int, ...]
    num_top: tuple[int, ...]  # how many likeliest tokens each wants
    chosen: Tensor  # (R,) float32
    top: Tensor  # (R, most) float32, likeliest first
    top_ids: Tensor  # (R, most) int64

    def read(self) -> dict[int, TokenLogprobs]:
        """By row. Waits for the device."""
        chosen, top, ids = self.chosen.tolist(), self.top.tolist(), self.top_ids.tolist()
        return {
            row: TokenLogprobs(
                chosen=chosen[i], top=tuple(zip(ids[i][:count], top[i][:count], strict=True))
            )
            for i, (row, count) in enumerate(zip(self.rows, self.num_top, strict=True))
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The tokens of S rows, still on the device."""

    token_ids: Tensor  # (S,) int64
    is_valid: Tensor  # (S,) bool: False where NaN, or nothing that is allowed, left no choice
    logprobs: Logprobs | None = None

    def read(self) -> list[SampledToken]:
        """The tokens, in order. Waits for the device."""
        logprobs = self.logprobs.read() if self.logprobs else {}
        pairs = zip(self.token_ids.tolist(), self.is_valid.tolist(), strict=True)
        return [
            SampledToken(token_id=token, is_valid=valid, logprobs=logprobs.get(row))
            for row, (token, valid) in enumerate(pairs)
        ]


class Sampler:
    """One model's sampler."""

    def __init__(self, vocab_size: int, max_num_seqs: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._processor = LogitsProcessor(vocab_size, max_num_seqs, device)

    def sample(self, logits: Tensor, sequences: Many[Sequence]) -> Draw:
        """logits (S, vocabulary) float32, a row for each sequence; they are changed."""
        telling = [row for row, each in enumerate(sequences) if each.params.logprobs is not None]
        raw = logits[self._stage(telling, np.int64)] if telling else None
        self._processor.process(logits, sequences)
        # NaN is the largest of any row that has it, so the largest tells of the whole row.
        largest, token_ids = logits.max(dim=-1)
        for rows in self._sampled_groups(sequences):
            drawn = self._draw(logits, rows, [sequences[row] for row in rows])
            token_ids = token_ids.index_copy(0, self._stage(rows, np.int64), drawn)
        self._processor.count(token_ids, sequences)
        return Draw(
            token_ids=token_ids,
            is_valid=largest > -torch.inf,
            logprobs=None if raw is None else self._logprobs(raw, token_ids, telling, sequences),
        )

    def _logprobs(
        self, raw: Tensor, token_ids: Tensor, rows: list[int], sequences: Many[Sequence]
    ) -> Logprobs:
        num_top = tuple(sequences[row].params.logprobs or 0 for row in rows)
        norm = raw.logsumexp(dim=-1, keepdim=True)
        top, top_ids = raw.topk(min(max(num_top), self._vocab_size), dim=-1)
        chosen = raw.gather(1, token_ids[self._stage(rows, np.int64)][:, None])
        return Logprobs(
            rows=tuple(rows),
            num_top=num_top,
            chosen=(chosen - norm).squeeze(1),
            top=top - norm,
            top_ids=top_ids,
        )

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
        probs = self._kept(ranked, sequences)
        cumulative = probs.cumsum(dim=-1)
        places = [len(each.output_token_ids) for each in sequences]
        draws = [uniform(p.seed, place) for p, place in zip(params, places, strict=True)]
        target = self._stage(draws, np.float32)[:, None] * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, target, right=True)
        # Rounding may carry the target past the last token that has any probability.
        last = (probs > 0).sum(dim=-1, keepdim=True) - 1
        return token_ids.gather(1, torch.minimum(index, last)).squeeze(1)

    def _kept(self, ranked: Tensor, sequences: Many[Sequence]) -> Tensor:
        """Probabilities of ranked logits (rows, k), 0 where min_p, top_k or top_p cut them off."""
        params = [sequence.params for sequence in sequences]
        top_k = self._stage([each.top_k or self._vocab_size for each in params], np.int64)
        # A token is likely enough where its logit lies at most -log(min_p) below the largest.
        log_min_p = [math.log(each.min_p) if each.min_p else -math.inf for each in params]
        least = ranked[:, :1] + self._stage(log_min_p, np.float32)[:, None]
        rank = torch.arange(ranked.shape[1], device=self._device)
        ranked = ranked.masked_fill((rank >= top_k[:, None]) | (ranked < least), -torch.inf)
        probs = ranked.softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs
        top_p = self._stage([each.top_p for each in params], np.float32)
        return probs.masked_fill((before >= top_p[:, None]) & (rank > 0), 0.0)

    def _stage(self, values: object, dtype: type[np.generic]) -> Tensor:
        return stage(np.asarray(values, dtype=dtype), self._device)
