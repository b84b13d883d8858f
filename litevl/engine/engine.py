"""The engine: schedule, launch, collect, in a thread of its own.

Everything that changes a sequence happens in this thread. Other threads reach it through an inbox
(`add`, `abort`); tokens leave through one call of `deliver` a step. Composed in `cli.py`, called
by `api/service.py`. Knows no HTTP, no JSON and no text.
"""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from litevl.engine.scheduler import Scheduler
from litevl.errors import (
    ContextLengthError,
    DeviceLostError,
    InternalError,
    LitevlError,
    QueueFullError,
    UnavailableError,
)
from litevl.health import EngineStats, Health
from litevl.logs import FRAMES
from litevl.sequence import (
    Chunk,
    ChunkOutput,
    Deliver,
    FinishReason,
    SampledToken,
    Sequence,
    Step,
    StepOutput,
)

logger = logging.getLogger("litevl.engine")

STALL_AFTER_S = 60.0  # without a heartbeat while there is work: /health turns red
QUEUE_S = 60.0  # in the queue without having run: whoever asked has given up, or should elsewhere


class Launched(Protocol):
    """A forward pass under way."""

    def wait(self) -> list[ChunkOutput]:
        """Block until it is done; what came of each chunk, in order."""


class Runner(Protocol):
    """What turns a step into tokens; `runner.py` implements it, tests fake it."""

    def launch(self, step: Step) -> Launched:
        """MemoryError and DeviceLostError say what they mean; anything else is the fault of one of
        the sequences. A step that failed may be launched again, in parts."""

    def check_device(self) -> None:
        """Asked after a failure; DeviceLostError when nothing can run any more."""


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
        self._alive_at: float | None = None  # the last heartbeat of the step under way
        self._num_divided = 0
        self._num_leaked = 0
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
        alive_at = self._alive_at
        if alive_at is not None and self._clock() - alive_at > STALL_AFTER_S:
            return Health.STALLED
        return Health.READY

    def beat(self) -> None:
        """The step under way is getting on: called within it by what may take long."""
        if self._alive_at is not None:
            self._alive_at = self._clock()

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
            num_divided=self._num_divided,
            num_leaked=self._num_leaked,
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
        if any(held := self._held()) or self._unfinished:
            raise RuntimeError(f"idle engine holds (KV blocks, features, sequences) = {held}")

    def _held(self) -> tuple[int, int, int]:
        scheduler = self.scheduler
        pool = scheduler.pool
        blocks = pool.num_blocks - pool.num_free
        sequences = len(scheduler.running) + len(scheduler.waiting)
        return blocks, scheduler.encoder_cache.num_held, sequences

    # The engine thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                outputs = self.step()
                if outputs:
                    self._deliver(outputs)
        except DeviceLostError as error:
            logger.critical("the engine stops: %s", error)
        finally:
            self._fail_all()

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
        outputs = self._end_overdue()  # not before: perhaps there is room now
        if step:
            self._alive_at = self._clock()
            outputs += self._compute(step)
            self._alive_at = None
            self.num_steps += 1
        if not self._unfinished:
            self._count_leaks()
        return outputs

    def _count_leaks(self) -> None:
        """Nothing is unfinished, so nothing may be held; what is, was lost by a bug of ours."""
        if (held := sum(self._held())) > self._num_leaked:
            logger.error("%s more held while idle", held - self._num_leaked)
            self._num_leaked = held

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
        """Launch and collect. A step that fails is repeated in halves, until it is known who fails
        alone; the others notice nothing."""
        try:
            computed = self._runner.launch(step).wait()
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - the thread must survive one bad request
            self._runner.check_device()
            if len(step.chunks) == 1:
                return [self._fail(step.chunks[0].sequence, error)]
        else:
            return self.collect(step, computed)
        # Only here is the error gone, whose frames held what the step had allocated.
        self._num_divided += 1
        return [output for half in self._halves(step) for output in self._compute(half)]

    def _halves(self, step: Step) -> Iterator[Step]:
        """Each encodes what its chunks need and nobody has encoded by then."""
        middle = len(step.chunks) // 2
        for chunks in (step.chunks[:middle], step.chunks[middle:]):
            needed = {
                c.sequence.media_key(item) for c in chunks for item in c.sequence.prompt.media
            }
            wanted = (e for e in step.encode if e.key in needed)
            missing = tuple(e for e in wanted if e.key not in self.scheduler.encoder_cache)
            yield Step(chunks=chunks, encode=missing)

    def collect(self, step: Step, computed: list[ChunkOutput]) -> list[StepOutput]:
        """Note what a finished step computed, and say what is new."""
        pairs = zip(step.chunks, computed, strict=True)
        return [output for chunk, each in pairs if (output := self._advance(chunk, each))]

    def _advance(self, chunk: Chunk, computed: ChunkOutput) -> StepOutput | None:
        sequence = chunk.sequence
        if not computed.is_valid:
            return self._fail(sequence, ValueError("no usable numbers"), is_spoiled=True)
        try:
            self.scheduler.complete(chunk)
            return self._append(sequence, computed.token) if computed.token else None
        except Exception as error:  # noqa: BLE001 - and one bad token: a grammar is foreign code
            return self._fail(sequence, error)

    def _append(self, sequence: Sequence, token: SampledToken) -> StepOutput:
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

    def _fail(
        self, sequence: Sequence, error: Exception, *, is_spoiled: bool = False
    ) -> StepOutput:
        """End a sequence by its own error."""
        # Not its message, which may hold what a caller wrote.
        frames = "".join(traceback.format_tb(error.__traceback__))
        told = (len(sequence), type(error).__name__)
        logger.error("a sequence of %d tokens failed: %s", *told, extra={FRAMES: frames})
        self._forget(sequence, is_spoiled=is_spoiled)
        if isinstance(error, LitevlError):
            return _ended(sequence, error)
        if isinstance(error, MemoryError):
            return _ended(sequence, UnavailableError("Out of memory; try again, or send less."))
        return _ended(sequence, InternalError("The model failed on this request."))

    def _fail_all(self) -> None:
        """At the end: what has run failed with us, what has not can be sent elsewhere."""
        with self._wake:  # from now on `add` refuses
            self._is_dead = True
            left = list(self._unfinished.values())
        gone = UnavailableError("The engine has stopped.", code="server_error")
        failed = InternalError("The model failed while it answered this request.")
        has_failed = not self._is_stopping
        # Told first: if the state is broken, freeing it may raise, and nobody may wait for ever.
        self._deliver(
            [
                _ended(each, gone if each.num_cached is None or not has_failed else failed)
                for each in left
            ]
        )
        self._take_inbox()
        for sequence in left:
            self._forget(sequence)


def _ended(sequence: Sequence, error: Exception) -> StepOutput:
    return StepOutput(request_id=sequence.request_id, finish_reason=FinishReason.ERROR, error=error)
