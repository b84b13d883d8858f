"""The engine: schedule, launch, collect, in a thread of its own.

Everything that changes a sequence happens in this thread. Other threads reach it through an inbox
(`add`, `abort`); tokens leave through one call of `deliver` a step. Composed in `cli.py`, called
by `api/service.py`. Knows no HTTP, no JSON and no text.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from litevl.engine.scheduler import Scheduler
from litevl.errors import (
    ContextLengthError,
    InternalError,
    LitevlError,
    QueueFullError,
    UnavailableError,
)
from litevl.sequence import (
    Chunk,
    Deliver,
    EngineStats,
    FinishReason,
    Health,
    SampledToken,
    Sequence,
    Step,
    StepOutput,
)

logger = logging.getLogger("litevl.engine")

STALL_AFTER_S = 60.0  # a step that takes longer turns /health red
QUEUE_S = 60.0  # in the queue without having run: whoever asked has given up, or should elsewhere
MAX_FAILED_STEPS = 3  # in a row; then the device is taken for lost


class Launched(Protocol):
    """A forward pass under way."""

    def wait(self) -> list[SampledToken]:
        """Block until it is done: one token for every chunk that is the last of its sequence."""
        ...


class Runner(Protocol):
    """What turns a step into tokens; `runner.py` implements it, tests fake it."""

    def launch(self, step: Step) -> Launched: ...


class Engine:
    """Continuous batching over one model. `add`, `abort`, `health`, `stats`, `stop`: any thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        max_model_len: int,
        max_num_seqs: int,
        max_num_queued_reqs: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self.num_steps = 0
        self._runner = runner
        self._max_model_len = max_model_len
        self._max_unfinished = max_num_seqs + max_num_queued_reqs
        self._clock = clock
        self._wake = threading.Condition()
        self._added: deque[Sequence] = deque()
        self._aborted: deque[str] = deque()
        self._unfinished: dict[str, Sequence] = {}
        self._is_stopping = False
        self._is_dead = False
        self._step_began: float | None = None
        self._failed_steps = 0  # in a row, by no fault of a request
        self._deliver: Deliver = lambda outputs: None
        self._thread = threading.Thread(target=self._run, name="litevl-engine", daemon=True)

    # Any thread --------------------------------------------------------------------------------

    def start(self, deliver: Deliver) -> None:
        """Start the thread; `deliver` is called from it with a step's outputs."""
        self._deliver = deliver
        self._thread.start()

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its outputs follow through `deliver`.

        Raises ContextLengthError, QueueFullError or UnavailableError, and then nothing is kept.
        """
        if len(sequence.prompt) >= self._max_model_len:
            raise ContextLengthError(
                f"The prompt has {len(sequence.prompt)} tokens; this model's maximum context "
                f"length is {self._max_model_len} tokens, of which one at least is the answer's."
            )
        with self._wake:
            if self._is_dead or self._is_stopping:
                raise UnavailableError("The engine has stopped.", code="server_error")
            if len(self._unfinished) >= self._max_unfinished:
                raise QueueFullError("Too many requests are waiting; try again in a moment.")
            sequence.arrived = self._clock()
            self._unfinished[sequence.request_id] = sequence
            self._added.append(sequence)
            self._wake.notify()

    def abort(self, request_id: str) -> None:
        """Free a request before the next step; ids that are unknown or finished are ignored."""
        with self._wake:
            if request_id in self._unfinished:
                self._aborted.append(request_id)
                self._wake.notify()

    def health(self) -> Health:
        """The heartbeat of the step, not of the web server."""
        if self._is_dead or not self._thread.is_alive():
            return Health.DEAD
        began = self._step_began
        if began is not None and time.monotonic() - began > STALL_AFTER_S:
            return Health.STALLED
        return Health.READY

    def stats(self) -> EngineStats:
        """Counts as they are in this moment, of which some may be a step ahead of others."""
        scheduler = self.scheduler
        pool, num_running = scheduler.pool, len(scheduler.running)
        return EngineStats(
            num_running=num_running,
            num_waiting=max(len(self._unfinished) - num_running, 0),
            num_blocks=pool.num_blocks,
            kv_usage=1 - pool.num_free / pool.num_blocks,
            block_size=pool.block_size,
            num_preemptions=scheduler.num_preemptions,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            encoder_hits=scheduler.encoder_cache.num_hits,
        )

    def stop(self) -> None:
        """End the thread after its current step; what still runs is delivered as an error."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def num_unfinished(self) -> int:
        return len(self._unfinished)

    def check_idle(self) -> None:
        """Raise unless everything is free; true whenever no request is unfinished."""
        scheduler = self.scheduler
        pool = scheduler.pool
        held = (
            pool.num_blocks - pool.num_free,
            scheduler.encoder_cache.num_held,
            len(self._unfinished),
        )
        if any(held) or scheduler.running or scheduler.waiting:
            raise RuntimeError(f"idle engine holds (KV blocks, features, requests) = {held}")

    # The engine thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                outputs = self.step()
                if outputs:
                    self._deliver(outputs)
                if self._failed_steps == MAX_FAILED_STEPS:
                    logger.critical("%d steps failed in a row: the engine stops", MAX_FAILED_STEPS)
                    return
        finally:
            self._is_dead = True
            self._fail_all(UnavailableError("The engine has stopped.", code="server_error"))

    def _wait_for_work(self) -> bool:
        """Block until there is something to do; False when it is time to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._unfinished or self._is_stopping)
            return not self._is_stopping

    def step(self) -> list[StepOutput]:
        """Take in what has arrived, and advance everything that can run by one forward pass.

        For the engine thread, or for tests that start none.
        """
        self._take_inbox()
        step = self.scheduler.schedule()
        overdue = self._end_overdue()  # not before: perhaps there is room now
        return overdue + (self._compute(step) if step else [])

    def _take_inbox(self) -> None:
        with self._wake:
            while self._added:
                self.scheduler.add(self._added.popleft())
            while self._aborted:
                if sequence := self._unfinished.pop(self._aborted.popleft(), None):
                    self.scheduler.finish(sequence)

    def _end_overdue(self) -> list[StepOutput]:
        """Give up what has waited too long for its first step."""
        error = UnavailableError("The request waited too long in the queue; try again later.")
        overdue = self.scheduler.overdue(self._clock() - QUEUE_S)
        return [self._end(sequence, error) for sequence in overdue]

    def _compute(self, step: Step) -> list[StepOutput]:
        """Launch and collect; a failure ends the sequences of this step and no others."""
        self._step_began = time.monotonic()
        try:
            outputs = self.collect(step, self._runner.launch(step).wait())
            self._failed_steps = 0
            return outputs
        except Exception as error:
            # The thread must survive one bad batch.
            logger.exception(
                "a step of %d tokens failed: %s", step.num_tokens, type(error).__name__
            )
            is_ours = not isinstance(error, LitevlError)
            self._failed_steps = self._failed_steps + 1 if is_ours else 0
            failure = InternalError("The model failed on this request.") if is_ours else error
            return [self._end(chunk.sequence, failure) for chunk in step.chunks]
        finally:
            self._step_began = None
            self.num_steps += 1

    def collect(self, step: Step, sampled_tokens: list[SampledToken]) -> list[StepOutput]:
        """Note what a finished step computed, and say what is new."""
        tokens = iter(sampled_tokens)
        sampled = [(chunk, next(tokens) if chunk.is_last else None) for chunk in step.chunks]
        return [output for chunk, token in sampled if (output := self._advance(chunk, token))]

    def _advance(self, chunk: Chunk, token: SampledToken | None) -> StepOutput | None:
        sequence = chunk.sequence
        if token and not token.is_valid:
            logger.error("a sequence of %d tokens gave no usable logits", len(sequence))
            self._forget(sequence, is_spoiled=True)
            return _ended(sequence, InternalError("The model failed on this request."))
        self.scheduler.complete(chunk)
        if not token:
            return None
        sequence.output_token_ids.append(token.token_id)
        if sequence.mask:
            sequence.mask.accept(token.token_id)
        reason = self._finish_reason(sequence, token.token_id)
        if reason:
            self._forget(sequence)
        return StepOutput(
            request_id=sequence.request_id,
            token_id=token.token_id,
            logprobs=token.logprobs,
            num_cached_tokens=sequence.num_cached or 0,
            finish_reason=reason,
        )

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        if token_id in sequence.params.stop_token_ids:
            return FinishReason.STOP
        is_full = len(sequence) >= self._max_model_len
        if is_full or len(sequence.output_token_ids) >= sequence.params.max_tokens:
            return FinishReason.LENGTH
        return None

    def _forget(self, sequence: Sequence, *, is_spoiled: bool = False) -> None:
        self.scheduler.finish(sequence, is_spoiled=is_spoiled)
        with self._wake:
            self._unfinished.pop(sequence.request_id, None)

    def _end(self, sequence: Sequence, error: Exception) -> StepOutput:
        self._forget(sequence)
        return _ended(sequence, error)

    def _fail_all(self, error: Exception) -> None:
        self._take_inbox()
        left = list(self._unfinished.values())
        # Told first: if the state is broken, freeing it may raise, and nobody may wait for ever.
        self._deliver([_ended(sequence, error) for sequence in left])
        for sequence in left:
            self._forget(sequence)


def _ended(sequence: Sequence, error: Exception) -> StepOutput:
    return StepOutput(request_id=sequence.request_id, finish_reason=FinishReason.ERROR, error=error)
