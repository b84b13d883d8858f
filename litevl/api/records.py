"""What becomes of every HTTP request, told once: to the metrics, the overview and the log.

`Recording` (middleware.py) begins a record and finishes it on whatever way the request ends; the
endpoints fill it in. Holds numbers and names of the server's own, nothing that a caller wrote
but the request id. Lives on the event loop.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from starlette.types import Scope

from litevl.api.choices import Delta
from litevl.api.fields import JSONObject
from litevl.api.metrics import Metrics
from litevl.logs import FIELDS
from litevl.sequence import FinishReason, LoadedMedia, MediaKind, Prompt, Sequence

logger = logging.getLogger("litevl.request")
wire_logger = logging.getLogger("litevl.wire")

GENERATING = frozenset({"/chat/completions", "/completions"})
UNLOGGED = frozenset({"/health", "/health/live", "/metrics", "/status"})  # asked all the time
PAGE_FILES = "/page/"  # asked for many at once: `/` says it all
NUM_RECENT = 32
LEFT = 499  # nginx's status for a client that did not wait for its answer

_RECORD = "litevl.record"


@dataclass(slots=True)
class _Answer:
    """One sequence of a request, as its tokens come."""

    sequence: Sequence
    first: float  # when its tokens came
    last: float
    num_tokens: int = 0
    reason: FinishReason | None = None


class RequestRecord:
    """One request: `middleware.py` says how it was answered, the endpoints what it was."""

    def __init__(self, metrics: Metrics, name: str, endpoint: str) -> None:
        self.name = name  # the request id
        self.caller: bytes | None = None  # whose it is, once that is known to be somebody's
        self.endpoint = endpoint
        self.began = time.monotonic()
        self.status: int | None = None  # of the answer, once it has begun
        self.code: str | None = None  # of the error that ended it
        self.model = "-"
        self.num_media: dict[MediaKind, int] = {"image": 0, "video": 0}
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.first_token: float | None = None  # seconds from arrival
        self._metrics = metrics
        self._prompts: Many[Prompt] = ()
        self._answers: list[_Answer] = []
        self._accepted = self.began

    # Told while the request is under way -----------------------------------------------------

    def load(self, media: Iterable[LoadedMedia]) -> None:
        """Its pictures and clips are decoded."""
        metrics = self._metrics
        for each in media:
            self.num_media[each.kind] += 1
            if each.kind == "video":
                metrics.video_frames += len(each.plan.frame_indices)
            if each.decode_seconds is None:
                metrics.media_hits += 1
            else:
                metrics.media_decode[each.kind].observe(each.decode_seconds)

    def accept(self, model: str, prompts: Many[Prompt], sequences: Iterable[Sequence]) -> None:
        """It goes to the engine, and is answered under one of the served model's names."""
        self.model = model
        self._accepted = time.monotonic()
        self._prompts = prompts
        self.prompt_tokens = sum(map(len, prompts))
        self._answers = [_Answer(each, self._accepted, self._accepted) for each in sequences]

    def note(self, delta: Delta) -> None:
        """A delta is about to be sent. Each token pays for what is done here."""
        now = time.monotonic()
        metrics = self._metrics
        answer = self._answers[delta.index]
        if count := delta.completion_tokens - answer.num_tokens:
            metrics.generation_tokens += count
            metrics.generation_rate.add(count, now)
            if answer.num_tokens:
                metrics.inter_token.observe((now - answer.last) / count, count)
            else:
                self._begin(answer, delta, now)
            answer.num_tokens = delta.completion_tokens
            answer.last = now
        if delta.finish_reason:
            self._end(answer, delta.finish_reason, now)

    def _begin(self, answer: _Answer, delta: Delta, now: float) -> None:
        metrics = self._metrics
        answer.first = now
        metrics.time_to_first_token.observe(now - self.began)
        if delta.index == 0:
            self.cached_tokens = delta.cached_tokens
        if self.first_token is None:
            self.first_token = now - self.began
            metrics.prompt_tokens += self.prompt_tokens
            for kind in self.num_media:
                tokens = sum(prompt.num_media_tokens(kind) for prompt in self._prompts)
                metrics.media_tokens[kind] += tokens

    def _end(self, answer: _Answer, reason: FinishReason, now: float) -> None:
        metrics = self._metrics
        answer.reason = reason
        metrics.finished["length" if reason is FinishReason.LENGTH else "stop"] += 1
        metrics.total_time.observe(now - self.began)
        metrics.prompt_sizes.observe(len(answer.sequence.prompt))
        metrics.answer_sizes.observe(answer.num_tokens)
        metrics.decode_time.observe(answer.last - answer.first)
        if answer.num_tokens > 1:
            per_token = (answer.last - answer.first) / (answer.num_tokens - 1)
            metrics.time_per_token.observe(per_token)
        # The engine thread set it before the first token came, and leaves it alone.
        if (started := answer.sequence.started) is not None:
            metrics.queue_time.observe(started - self._accepted)
            metrics.prefill_time.observe(answer.first - started)
            metrics.inference_time.observe(answer.last - started)

    # Told when it has ended ------------------------------------------------------------------

    def count_end(self) -> None:
        """Count what has not been counted: an error, or answers that came to no end."""
        if self.code and self.first_token is None:
            self._metrics.rejected[self.code] += 1
            return
        unended = sum(answer.reason is None for answer in self._answers)
        if self.status is None and self.endpoint in GENERATING and not self._answers:
            unended = 1  # the client left before it was known how many
        self._metrics.finished["error" if self.code else "abort"] += unended

    @property
    def completion_tokens(self) -> int:
        return sum(answer.num_tokens for answer in self._answers)

    @property
    def finish_reason(self) -> str | None:
        """Of all answers, where they differ."""
        reasons = {answer.reason or ("error" if self.code else "abort") for answer in self._answers}
        return ",".join(sorted(reasons)) or None


class Records:
    """All requests: begins and finishes their records, and remembers the last."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._began = time.monotonic()
        self._recent: dict[bytes, deque[JSONObject]] = defaultdict(lambda: deque(maxlen=NUM_RECENT))

    @property
    def uptime(self) -> float:
        """Seconds."""
        return time.monotonic() - self._began

    def recent(self, caller: bytes) -> list[JSONObject]:
        """The last requests of one caller that asked for an answer, newest first."""
        return list(reversed(self._recent[caller]))

    def note_connection(self, why: str, request: str | None) -> None:
        """The server ended a connection that brought no request, or not all of one, or took no
        answer; `why` is one of the wire's own words, `request` the id that the client was told."""
        self.metrics.connections[why] += 1
        fields = {"reason": why, "id": request}
        wire_logger.info("connection ended: %s id=%s", why, request or "-", extra={FIELDS: fields})

    def begin(self, scope: Scope, name: str, endpoint: str) -> RequestRecord:
        """`endpoint` must be one of ours: a path can hold whatever a caller wrote."""
        record = scope[_RECORD] = RequestRecord(self.metrics, name, endpoint)
        return record

    def finish(self, record: RequestRecord) -> None:
        """Called exactly once for each record."""
        record.count_end()
        told = _told(record)
        if record.endpoint in GENERATING and record.caller is not None:
            arrived = time.time() - (time.monotonic() - record.began)
            self._recent[record.caller].append({"when": round(arrived, 3), **told})
        is_dull = record.endpoint in UNLOGGED or record.endpoint.startswith(PAGE_FILES)
        if record.code or not is_dull:
            fields = {"endpoint": record.endpoint, "model": record.model, **told}
            words = [f"{name}={'-' if value is None else value}" for name, value in fields.items()]
            logger.info(" ".join(words), extra={FIELDS: fields})


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that a scope belongs to."""
    record: RequestRecord = scope[_RECORD]
    return record


def _told(record: RequestRecord) -> JSONObject:
    total = time.monotonic() - record.began
    return {
        "id": record.name,
        "status": record.status or LEFT,
        "error": record.code,
        "finish_reason": record.finish_reason,
        "images": record.num_media["image"],
        "videos": record.num_media["video"],
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "ttft_ms": None if record.first_token is None else round(record.first_token * 1000, 1),
        "total_ms": round(total * 1000, 1),
    }
