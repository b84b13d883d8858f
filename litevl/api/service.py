"""Where the engine thread and the event loop meet, from loading to drained.

`serve.py` makes one and attaches the backend when the model is loaded; `app.py` binds it to the
running loop; `answering.py` asks it for tokens. Knows no HTTP and no text.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from litevl.api.admission import Admission, pixels_that_fit
from litevl.api.ports import Backend
from litevl.config import Config
from litevl.errors import InternalError, LitevlError, UnavailableError
from litevl.health import Health
from litevl.sequence import FinishReason, Sequence, StepOutput

PREPARE_THREADS = 2  # a few prompts at a time: they compete with the engine for the interpreter

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loading:
    """What happens before there is a model to ask."""

    phase: str
    progress: float | None = None  # the share of it that is done, where that is known


Mailbox = asyncio.Queue[StepOutput]  # what has arrived for one request and was not yet taken


class Generation:
    """One request's sequences in the engine. Whatever has not ended when it is left is aborted."""

    def __init__(
        self, mailboxes: dict[str, Mailbox], backend: Backend, sequences: Many[Sequence]
    ) -> None:
        self._mailboxes = mailboxes
        self._mailbox: Mailbox = asyncio.Queue()
        self._engine = backend.engine
        self._sequences = sequences
        self._open: set[str] = set()

    def __enter__(self) -> "Generation":
        """Add the sequences to the engine: all, or none and what `Engine.add` raises."""
        with contextlib.ExitStack() as undo:
            undo.push(self.__exit__)
            for sequence in self._sequences:
                self._mailboxes[sequence.request_id] = self._mailbox
                self._open.add(sequence.request_id)
                self._engine.add(sequence)
            undo.pop_all()
        return self

    def __exit__(self, *reason: object) -> None:
        for name in list(self._open):
            self.end(name)

    @property
    def is_open(self) -> bool:
        """Whether anything is still to come."""
        return bool(self._open)

    async def take(self) -> list[StepOutput]:
        """What has come since the last call, to slow readers many steps at once; raises what the
        engine reports, after what came before it has been taken."""
        arrived = [await self._mailbox.get()]
        while not self._mailbox.empty():
            arrived.append(self._mailbox.get_nowait())
        outputs = [each for each in arrived if each.request_id in self._open]
        for index, output in enumerate(outputs):
            error = _error_of(output)
            if error and index:
                for rest in outputs[index:]:
                    self._mailbox.put_nowait(rest)
                return outputs[:index]
            if error:
                raise error  # those still open are ended when the generation is left
            if output.finish_reason:
                self._open.discard(output.request_id)
                del self._mailboxes[output.request_id]
        return outputs

    def end(self, request_id: str) -> None:
        """Nothing more of this sequence is wanted; one that has ended is left alone."""
        if request_id in self._open:
            self._open.discard(request_id)
            del self._mailboxes[request_id]
            self._engine.abort(request_id)


class Service:
    """The model as the HTTP side sees it: perhaps still loading, perhaps on its way out."""

    def __init__(self, config: Config) -> None:
        self.max_sequences = config.max_num_seqs + config.max_num_queued_reqs  # run or wait
        self.admission = Admission(self.max_sequences, pixels_that_fit())
        self.backend: Backend | None = None  # the loaded model, in whatever health
        self.loading: Loading | None = Loading("starting")  # None once it is over
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_draining = False
        self._has_given_up = False
        self._mailboxes: dict[str, Mailbox] = {}
        self._seeds = random.Random(config.seed)
        self._workers = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="litevl-prepare")

    # Life ----------------------------------------------------------------------------------------

    def report(self, phase: str, done: int = 0, total: int = 0) -> None:
        """So much of a phase of the loading is done; from any thread, before `attach`."""
        self.loading = Loading(phase, done / total if total else None)

    def attach(self, backend: Backend) -> None:
        """Start the engine of a loaded model; from any thread, before or after `bind`."""
        backend.engine.start(self._deliver)
        self.loading = None
        self.backend = backend

    def bind(self) -> None:
        """Deliver to the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def drain(self) -> None:
        """Finish what runs and take nothing new."""
        self._is_draining = True

    def give_up(self) -> None:
        """End whatever still runs, as a dead engine would: its clients are told why."""
        self._has_given_up = True
        self._distribute([_given_up(name) for name in self._mailboxes])

    async def stop(self) -> None:
        """Drain, and end the threads and children, after the engine's last step."""
        self.drain()
        if self.backend:
            await asyncio.to_thread(self.backend.engine.stop)
            await self.backend.media.close()
        await asyncio.to_thread(self._workers.shutdown, cancel_futures=True)

    def health(self) -> Health:
        if self.backend is None:
            return Health.LOADING
        health = self.backend.engine.health()
        return Health.DRAINING if self._is_draining and health is Health.READY else health

    @property
    def num_running(self) -> int:
        """Requests that wait for tokens."""
        return len(self._mailboxes)

    # Requests ------------------------------------------------------------------------------------

    def ready_backend(self) -> Backend:
        """The backend for a new request; `UnavailableError` while there is none to take it."""
        health = self.health()
        if self.backend is None or health is not Health.READY:
            code = "server_error" if health is Health.DEAD else "server_is_overloaded"
            raise UnavailableError(f"The server is {health}; try again later.", code=code)
        return self.backend

    def draw_seed(self) -> int:
        """A seed for a request that gave none."""
        return self._seeds.getrandbits(63)

    async def in_worker(self, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Run slow work in one of the few worker threads."""
        work = partial(function, *args, **named)
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    def generation(self, backend: Backend, sequences: Many[Sequence]) -> "Generation":
        """What the engine makes of one request's sequences; to be entered by `with`."""
        if self._has_given_up:
            raise going_down()
        return Generation(self._mailboxes, backend, sequences)

    def _deliver(self, outputs: list[StepOutput]) -> None:
        """Called once a step by the engine thread: one wake-up of the loop for all requests."""
        if self._loop is not None:
            # The loop may close while the engine makes its last step; then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._distribute, outputs)

    def _distribute(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            if mailbox := self._mailboxes.get(output.request_id):
                mailbox.put_nowait(output)


def going_down() -> UnavailableError:
    """What those are told whom the drain does not wait for."""
    return UnavailableError("The server is going down; try again in a moment.")


def _given_up(request_id: str) -> StepOutput:
    return StepOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=going_down())


def _error_of(output: StepOutput) -> LitevlError | None:
    """Why the engine gave a request up, if it did."""
    if output.finish_reason in (None, FinishReason.STOP, FinishReason.LENGTH):
        return None
    if isinstance(output.error, LitevlError):
        return output.error
    return InternalError("The model failed on this request.")
