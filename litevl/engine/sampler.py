"""Logits to tokens, each row with its own parameters and its own seed.

A row's draw depends on its logits, its seed and its place in the answer alone, never on the batch:
one uniform number, made on the host from seed and place, is looked up in the row's own
distribution, sorted where something is cut off it. Nothing here reads from the device; `Draw.read`
does, when the step is collected. Called by `runner.py`; knows no sequence but through its
parameters and ids.
"""

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from litevl.engine.logits import LogitsProcessor
from litevl.models.attention import stage
from litevl.sequence import SampledToken, SamplingParams, Sequence, TokenLogprobs

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
        """The tokens, in order; those of invalid rows mean nothing. Waits for the device."""
        logprobs = self.logprobs.read() if self.logprobs else {}
        return [
            SampledToken(token_id=token, logprobs=logprobs.get(row))
            for row, token in enumerate(self.token_ids.tolist())
        ]


def _takes_all(params: SamplingParams) -> bool:
    """Whether a draw needs no order: neither top_k nor top_p cut anything off."""
    return params.top_k <= 0 and params.top_p >= 1


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
        logprobs = None if raw is None else self._logprobs(raw, token_ids, telling, sequences)
        # The last: a step that fails is repeated, and nothing may be counted twice.
        self._processor.count(token_ids, sequences)
        return Draw(token_ids=token_ids, is_valid=largest > -torch.inf, logprobs=logprobs)

    def _logprobs(
        self, raw: Tensor, token_ids: Tensor, rows: list[int], sequences: Many[Sequence]
    ) -> Logprobs:
        num_top = tuple(sequences[row].params.logprobs or 0 for row in rows)
        norm = raw.logsumexp(dim=-1, keepdim=True)
        top, top_ids = raw.topk(max(num_top), dim=-1)
        chosen = raw.gather(1, token_ids[self._stage(rows, np.int64)][:, None])
        return Logprobs(
            rows=tuple(rows),
            num_top=num_top,
            chosen=(chosen - norm).squeeze(1),
            top=top - norm,
            top_ids=top_ids,
        )

    def _sampled_groups(self, sequences: Many[Sequence]) -> list[list[int]]:
        """Rows that are drawn rather than greedy, split by what their draw has to look at: the
        likeliest few, all tokens in any order, or all of them sorted."""
        groups: tuple[list[int], list[int], list[int]] = ([], [], [])
        for row, sequence in enumerate(sequences):
            params = sequence.params
            if not params.is_greedy:
                is_narrow = 0 < params.top_k <= SORTED_PREFIX
                groups[0 if is_narrow else 1 if _takes_all(params) else 2].append(row)
        return [rows for rows in groups if rows]

    def _draw(self, logits: Tensor, rows: list[int], sequences: Many[Sequence]) -> Tensor:
        """Draw one token for each of these rows, a group: (len(rows),) int64."""
        params = [sequence.params for sequence in sequences]
        chosen = logits if len(rows) == len(logits) else logits[self._stage(rows, np.int64)]
        takes_all = _takes_all(params[0])
        if not takes_all:  # before anything else is done to them, since few may be left
            widest = max(each.top_k or self._vocab_size for each in params)
            chosen, token_ids = chosen.topk(min(widest, self._vocab_size), dim=-1)
        temperature = self._stage([each.temperature for each in params], np.float32)
        # Whatever a model or a penalty made of a row, it may not spoil its neighbours' step.
        scaled = (chosen / temperature[:, None]).nan_to_num(
            nan=-LARGEST, posinf=LARGEST, neginf=-LARGEST
        )
        scaled = self._likely(scaled, params)
        probs = scaled.softmax(dim=-1) if takes_all else self._kept(scaled, params)
        index = self._look_up(probs, sequences)
        return (index if takes_all else token_ids.gather(1, index)).squeeze(1)

    def _likely(self, logits: Tensor, params: Many[SamplingParams]) -> Tensor:
        """Logits (rows, k), -inf where min_p cuts them off."""
        if not any(each.min_p for each in params):
            return logits
        # A token is likely enough where its logit lies at most -log(min_p) below the largest.
        log_min_p = [math.log(each.min_p) if each.min_p else -math.inf for each in params]
        least = logits.amax(dim=-1, keepdim=True) + self._stage(log_min_p, np.float32)[:, None]
        return logits.masked_fill(logits < least, -torch.inf)

    def _kept(self, ranked: Tensor, params: Many[SamplingParams]) -> Tensor:
        """Probabilities of ranked logits (rows, k), 0 where top_k or top_p cut them off."""
        top_k = self._stage([each.top_k or self._vocab_size for each in params], np.int64)
        rank = torch.arange(ranked.shape[1], device=self._device)
        probs = ranked.masked_fill(rank >= top_k[:, None], -torch.inf).softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs
        top_p = self._stage([each.top_p for each in params], np.float32)
        return probs.masked_fill((before >= top_p[:, None]) & (rank > 0), 0.0)

    def _look_up(self, probs: Tensor, sequences: Many[Sequence]) -> Tensor:
        """Where each row's uniform number falls in its probabilities (rows, k): (rows, 1) int64."""
        cumulative = probs.cumsum(dim=-1)
        draws = [uniform(each.params.seed, len(each.output_token_ids)) for each in sequences]
        total = cumulative[:, -1:].contiguous()
        target = self._stage(draws, np.float32)[:, None] * total
        index = torch.searchsorted(cumulative, target, right=True)
        # Rounding may carry the target past the last token that has any probability.
        return torch.minimum(index, torch.searchsorted(cumulative, total))

    def _stage(self, values: object, dtype: type[np.generic]) -> Tensor:
        return stage(np.asarray(values, dtype=dtype), self._device)
