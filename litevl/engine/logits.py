"""What is done to logits before a token is chosen from them: grammar, bias, stop tokens, penalties.

Only rows that ask for something are touched, in place and on the device; penalties read per-row
counts that live there, so nothing waits for it. Called by `sampler.py`; knows no probabilities.
"""

from collections.abc import Sequence as Many

import numpy as np
import torch
from torch import Tensor

from litevl.models.attention import stage
from litevl.sequence import Sequence


class LogitsProcessor:
    """One model's; its counts are allocated when the first penalty is asked for."""

    def __init__(self, vocab_size: int, max_num_seqs: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._max_num_seqs = max_num_seqs
        self._device = device
        self._in_prompt: Tensor | None = None  # (rows, vocabulary) bool
        self._counts: Tensor | None = None  # (rows, vocabulary) int32, of the output
        self._row_owner: dict[int, str] = {}

    def process(self, logits: Tensor, sequences: Many[Sequence]) -> None:
        """Change logits (S, vocabulary) float32, a row for each sequence. Forbidden is -inf."""
        self._mask(logits, sequences)
        self._bias(logits, sequences)
        rows = _penalised(sequences)
        if rows:
            self._penalise(logits, sequences, rows)

    def count(self, token_ids: Tensor, sequences: Many[Sequence]) -> None:
        """Note which tokens (S,) were chosen, for the penalties to come."""
        rows = _penalised(sequences)
        if not rows:
            return
        _, counts = self._state([])
        slots = self._stage([sequences[row].row for row in rows], np.int64)
        one = torch.ones((), dtype=torch.int32, device=self._device)
        counts.index_put_((slots, token_ids[self._stage(rows, np.int64)]), one, accumulate=True)

    def _mask(self, logits: Tensor, sequences: Many[Sequence]) -> None:
        """What a row's grammar does not allow."""
        masks = [(row, each.mask) for row, each in enumerate(sequences) if each.mask]
        if not masks:
            return
        words = np.zeros((len(masks), -(-self._vocab_size // 32)), dtype=np.int32)
        for words_of_row, (_, mask) in zip(words, masks, strict=True):
            mask.fill(words_of_row)
        bits = torch.arange(32, dtype=torch.int32, device=self._device)
        allowed = (self._stage(words, np.int32)[:, :, None] >> bits) & 1
        index = self._stage([row for row, _ in masks], np.int64)
        forbidden = allowed.flatten(1)[:, : self._vocab_size] == 0
        logits.index_copy_(0, index, logits[index].masked_fill(forbidden, -torch.inf))

    def _bias(self, logits: Tensor, sequences: Many[Sequence]) -> None:
        """What clients add to tokens, and the stop tokens of answers that may not end yet."""
        edits = [
            (row, token, value)
            for row, each in enumerate(sequences)
            for token, value in _edits(each)
        ]
        if edits:
            rows, tokens, values = zip(*edits, strict=True)
            where = (self._stage(rows, np.int64), self._stage(tokens, np.int64))
            logits.index_put_(where, self._stage(values, np.float32), accumulate=True)

    def _penalise(self, logits: Tensor, sequences: Many[Sequence], rows: list[int]) -> None:
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
        logits.index_copy_(0, index, own)

    def _state(self, sequences: Many[Sequence]) -> tuple[Tensor, Tensor]:
        """The counts, brought up to date for sequences that have come into their row since."""
        if self._in_prompt is None or self._counts is None:
            shape = (self._max_num_seqs, self._vocab_size)
            self._in_prompt = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._counts = torch.zeros(shape, dtype=torch.int32, device=self._device)
        for sequence in sequences:
            if self._row_owner.get(sequence.row) != sequence.request_id:
                # One that was preempted may have left a row behind, and may come back to it.
                owners = self._row_owner.items()
                self._row_owner = {row: who for row, who in owners if who != sequence.request_id}
                self._row_owner.pop(sequence.row, None)
                self._fill_row(sequence, self._in_prompt, self._counts)
                self._row_owner[sequence.row] = sequence.request_id  # not before: it may fail
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


def _penalised(sequences: Many[Sequence]) -> list[int]:
    return [row for row, each in enumerate(sequences) if each.params.has_penalties]


def _edits(sequence: Sequence) -> list[tuple[int, float]]:
    params = sequence.params
    if len(sequence.output_token_ids) >= params.min_tokens:
        return list(params.logit_bias)
    return [*params.logit_bias, *((token, -np.inf) for token in params.stop_token_ids)]
