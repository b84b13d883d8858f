"""A backend without a model behind the real server: scripted tokens, a byte tokenizer, grey media.

`running()` starts uvicorn as `litevl serve` does. Nothing here sleeps: the engine steps freely, or,
when held, exactly when a test says so, and tests wait for what the engine has seen.
"""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from litevl.api.ports import Backend
from litevl.api.service import Service
from litevl.api.serving import Server
from litevl.api.wire import Limits
from litevl.config import Config
from litevl.errors import InvalidValueError
from litevl.health import EngineStats, Health
from litevl.media.loader import Fit
from litevl.sequence import (
    Conversation,
    Deliver,
    FinishReason,
    Grammar,
    LoadedMedia,
    MediaItem,
    MediaPart,
    MediaPlan,
    MediaRef,
    MediaSize,
    ModelCard,
    PlannedMedia,
    Probe,
    Prompt,
    PromptSize,
    SamplingDefaults,
    Sequence,
    StepOutput,
    TextPart,
    TokenLogprobs,
    TokenMask,
    ToolFormat,
)

EOS = 256  # below it, a token is a byte
MEDIA_TOKEN = 257
TOKENS_PER_ITEM = 4
ANSWER = "Two circles: 两个圆 🙂."
KEY = "sk-test-key"
PATIENCE = 30.0  # seconds until a wait for something that must happen gives up

CARD = ModelCard(
    names=("tiny", "alias/of-tiny"),
    created=1_700_000_000,
    max_model_len=512,
    vocab_size=258,
    eos_token_ids=frozenset({EOS}),
    defaults=SamplingDefaults(temperature=0.5, top_p=0.9, top_k=20, repetition_penalty=1.05),
)


def say(text: str) -> list[int]:
    """The tokens of an answer and its end."""
    return [*text.encode(), EOS]


class FakeEngine:
    """One scripted token a step for every sequence."""

    def __init__(
        self, script: Callable[[Sequence], list[int]] = lambda sequence: say(ANSWER)
    ) -> None:
        self.script = script
        self.added: list[Sequence] = []
        self.aborted: list[str] = []
        self.state = Health.READY
        self.refusal: Exception | None = None  # raised by `add`
        self.failure: Exception | None = None  # delivered instead of the next token
        self.deliver: Deliver = lambda outputs: None
        self._running: dict[str, tuple[Sequence, list[int]]] = {}
        self._steps = float("inf")
        self._is_stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)

    # What the service calls

    def start(self, deliver: Deliver) -> None:
        self.deliver = deliver
        self._thread.start()

    def add(self, sequence: Sequence) -> None:
        if self.refusal:
            raise self.refusal
        with self._changed:
            sequence.started = time.monotonic()
            self.added.append(sequence)
            self._running[sequence.request_id] = (sequence, self.script(sequence))
            self._changed.notify_all()

    def abort(self, request_id: str) -> None:
        with self._changed:
            self.aborted.append(request_id)
            self._running.pop(request_id, None)
            self._changed.notify_all()

    def health(self) -> Health:
        return self.state

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self.num_running,
            num_waiting=0,
            num_blocks=8,
            kv_usage=min(self.num_running / 8, 1),
            block_size=16,
            num_preemptions=0,
            prefix_queries=sum(len(each.prompt) for each in self.added),
            prefix_hits=0,
            encoder_hits=0,
            num_divided=0,
            num_leaked=0,
        )

    def stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    # What tests call

    def hold(self, steps: int = 0) -> None:
        """Make so many steps and no more."""
        with self._changed:
            self._steps = steps
            self._changed.notify_all()

    def release(self) -> None:
        with self._changed:
            self._steps = float("inf")
            self._changed.notify_all()

    def wait_until(self, is_so: Callable[["FakeEngine"], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: is_so(self), PATIENCE):
                raise TimeoutError("the engine never saw what the test waits for")

    @property
    def num_running(self) -> int:
        return len(self._running)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._can_step)
                if self._is_stopping:
                    return
                self._steps -= 1
                outputs = [self._advance(*each) for each in list(self._running.values())]
                self._changed.notify_all()
            self.deliver(outputs)

    def _can_step(self) -> bool:
        return self._is_stopping or (bool(self._running) and self._steps > 0)

    def _advance(self, sequence: Sequence, tokens: list[int]) -> StepOutput:
        name = sequence.request_id
        if self.failure:
            del self._running[name]
            return StepOutput(request_id=name, finish_reason=FinishReason.ERROR, error=self.failure)
        token = tokens[min(len(sequence.output_token_ids), len(tokens) - 1)]
        sequence.output_token_ids.append(token)
        reason = None
        if token in sequence.params.stop_token_ids:
            reason = FinishReason.STOP
        elif len(sequence.output_token_ids) >= sequence.params.max_tokens:
            reason = FinishReason.LENGTH
        if reason:
            del self._running[name]
        return StepOutput(
            request_id=name,
            token_id=token,
            logprobs=self._logprobs(sequence, token),
            finish_reason=reason,
        )

    def _logprobs(self, sequence: Sequence, token: int) -> TokenLogprobs | None:
        """The token itself with -0.5, then the ids that follow it."""
        wanted = sequence.params.logprobs
        if wanted is None:
            return None
        top = tuple((token + i, -0.5 - i) for i in range(wanted))
        return TokenLogprobs(chosen=-0.5, top=top)


def _prompt(ids: Many[int]) -> Prompt:
    token_ids = np.array(ids, np.int64)
    positions = np.tile(np.arange(len(token_ids)), (3, 1))
    return Prompt(token_ids=token_ids, positions=positions, position_delta=0)


@dataclass
class FakePreprocessor:
    """A byte is a token; a picture or clip is four."""

    error: Exception | None = None
    is_thinking: bool = False
    tool_format: ToolFormat = "hermes"
    seen: list[Conversation] = field(default_factory=list)
    reserves: list[int] = field(default_factory=list)  # what `fit` left for answers
    entered: threading.Event = field(default_factory=threading.Event)
    may_go: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_go.set()

    def prepare(self, conversation: Conversation, media: Many[LoadedMedia]) -> Prompt:
        self.seen.append(conversation)
        self.entered.set()
        self.may_go.wait(PATIENCE)
        if self.error:
            raise self.error
        ids: list[int] = []
        items: list[MediaItem] = []
        for part in (part for message in conversation.messages for part in message.parts):
            if isinstance(part, TextPart):
                ids += part.text.encode()
            else:
                items.append(_item(media[part.index], len(ids)))
                ids += [MEDIA_TOKEN] * TOKENS_PER_ITEM
        return replace(_prompt(ids), media=tuple(items), is_thinking=self.is_thinking)

    def text_prompt(self, text: str | Many[int]) -> Prompt:
        if not text:
            raise InvalidValueError("`prompt` must hold at least one token.", param="prompt")
        return _prompt(list(text.encode()) if isinstance(text, str) else text)

    def decode(self, token_ids: Many[int]) -> str:
        return bytes(each for each in token_ids if each < EOS).decode(errors="replace")

    def measure(self, conversation: Conversation, media: Many[PlannedMedia]) -> PromptSize:
        sizes = tuple(sum(map(_size, message.parts)) for message in conversation.messages)
        sized = (MediaSize(media=m, grid=(1, 4, 4), num_tokens=TOKENS_PER_ITEM) for m in media)
        ids = np.zeros(sum(sizes), np.int64)
        return PromptSize(token_ids=ids, message_tokens=sizes, media=tuple(sized))

    def fit(
        self, conversation: Conversation, media: Many[PlannedMedia], reserve: int
    ) -> list[PlannedMedia]:
        """Half as large."""
        self.reserves.append(reserve)
        return [replace(each, plan=replace(each.plan, width=4, height=4)) for each in media]

    def token_name(self, token_id: int) -> bytes:
        return self.token_bytes(token_id) or f"<{token_id}>".encode()

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < EOS else b""


def _size(part: TextPart | MediaPart) -> int:
    return len(part.text.encode()) if isinstance(part, TextPart) else TOKENS_PER_ITEM


def _item(media: LoadedMedia, start: int) -> MediaItem:
    return MediaItem(
        kind=media.kind,
        digest=media.digest,
        token_indices=np.arange(start, start + TOKENS_PER_ITEM),
        pixels=np.zeros((16, 8), np.uint8),
        mean=(0.0,),
        std=(1.0,),
        grid=(1, 4, 4),
    )


@dataclass
class FakeMedia:
    """Every reference is a grey picture, or a clip where it was called one."""

    error: Exception | None = None
    refs: list[MediaRef] = field(default_factory=list)
    is_closed: bool = False

    async def close(self) -> None:
        self.is_closed = True

    async def load(
        self, refs: Many[MediaRef], scope: bytes = b"", fit: Fit | None = None
    ) -> list[LoadedMedia]:
        known = {each.url for each in self.refs}
        return [
            LoadedMedia(
                probe=each.probe,
                plan=each.plan,
                frames=np.zeros((1, each.plan.height, each.plan.width, 3), np.uint8),
                digest=ref.url.encode()[:16],
                param=each.param,
                decode_seconds=None if ref.url in known else 0.25,
            )
            for ref, each in zip(refs, await self.measure(refs, scope, fit), strict=True)
        ]

    async def measure(
        self, refs: Many[MediaRef], scope: bytes = b"", fit: Fit | None = None
    ) -> list[PlannedMedia]:
        self.refs += refs
        if self.error:
            raise self.error
        planned = [
            PlannedMedia(
                probe=Probe(kind=ref.declared, width=8, height=8, fps=2.0),
                plan=MediaPlan(frame_indices=(0,), width=8, height=8),
                param=ref.param,
            )
            for ref in refs
        ]
        return await fit(planned) if fit else planned


class FakeGrammars:
    """Compiles everything to a mask that allows everything, and remembers what was asked."""

    def __init__(self) -> None:
        self.compiled: list[tuple[Grammar, bool]] = []
        self.error: Exception | None = None

    def compile(self, grammar: Grammar, *, after_thinking: bool, param: str) -> TokenMask:
        self.compiled.append((grammar, after_thinking))
        if self.error:
            raise self.error
        return FreeMask()


class FreeMask:
    """Everything may come."""

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        bitmask[:] = -1

    def accept(self, token_id: int) -> None:
        """Whatever it is."""


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A running server and the fakes behind it."""

    url: str  # http://127.0.0.1:PORT
    server: Server
    client: httpx.Client
    service: Service
    engine: FakeEngine
    preprocessor: FakePreprocessor
    media: FakeMedia
    grammars: FakeGrammars

    def attach(self, card: ModelCard = CARD) -> None:
        """End the loading."""
        self.service.attach(
            Backend(
                card=card,
                engine=self.engine,
                preprocessor=self.preprocessor,
                grammars=self.grammars,
                media=self.media,
            )
        )

    def connect(self) -> socket.socket:
        """A raw connection, to send what no client library would."""
        return socket.create_connection(("127.0.0.1", httpx.URL(self.url).port or 0), PATIENCE)

    def exchange(self, request: bytes) -> bytes:
        """Send bytes and read until the server closes."""
        with self.connect() as connection, connection.makefile("rb") as answer:
            connection.sendall(request)
            return answer.read()

    def chat(self, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=body(**fields))


def body(**fields: Any) -> dict[str, Any]:
    """The smallest request, with more fields."""
    return {"messages": [{"role": "user", "content": "hi"}], **fields}


def request_bytes(**fields: object) -> bytes:
    content = json.dumps(body(**fields)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def assert_error(answer: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    """Check the shape that every error has, and return its message."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"req-[0-9a-f]{32}", answer.headers["x-request-id"])
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    return str(error["message"])


@contextmanager
def running(
    *, is_loaded: bool = True, limits: Limits | None = None, **settings: Any
) -> Iterator[Rig]:
    """A server on a free port of loopback, with a client that carries the key."""
    config = Config(**{"api_key": (KEY,), **settings})
    service = Service(config)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = Server(config, service, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
    thread.start()  # the socket listens already: no client needs to wait
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE, trust_env=False) as client:
        rig = Rig(
            url=url,
            server=server,
            client=client,
            service=service,
            engine=FakeEngine(),
            preprocessor=FakePreprocessor(),
            media=FakeMedia(),
            grammars=FakeGrammars(),
        )
        try:
            if is_loaded:
                rig.attach()
            yield rig
        finally:
            rig.engine.release()
            rig.preprocessor.may_go.set()
            server.should_exit = True
            thread.join()
