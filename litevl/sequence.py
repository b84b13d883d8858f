"""The nouns that the rooms hand to one another. Arrays are numpy; tensors live behind the engine.

A request's words and media references become `Message`s and `MediaRef`s (api), references become
`LoadedMedia` (media), both become a `Prompt` (models), a `Prompt` and `SamplingParams` become a
`Sequence` (engine), whose `StepOutput`s travel back to api. Nothing here knows HTTP, JSON or torch.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

MediaKind = Literal["image", "video"]
Detail = Literal["low", "high"]
MediaKey = tuple[bytes, bytes]  # scope and digest: what may share features


# What a client asked ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaOptions:
    """Qwen's own keys for one picture or clip; `None` means not given. Pixels are per frame."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None  # all frames together
    resized_height: int | None = None
    resized_width: int | None = None
    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None  # seconds
    video_end: float | None = None
    detail: Detail | None = None  # OpenAI's word for a budget of pixels; `auto` is none given


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRef:
    """Where one picture or clip is: a `data:` URL or an http(s) URL. The bytes decide its kind.

    A clip may also come as pictures of its frames, `options.fps` a second.
    """

    declared: MediaKind  # what the part called it; only used in errors before bytes are seen
    url: str = field(default="", repr=False)  # content: never logged
    param: str  # dotted path of the part, for errors: `messages[0].content[1]`
    options: MediaOptions = MediaOptions()
    frames: tuple["MediaRef", ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class MediaPart:
    """Stands where media item `index` of the request stood in the message."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model makes, or made in an earlier turn."""

    id: str
    name: str
    arguments: str = field(repr=False)  # a JSON object


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: Literal["system", "user", "assistant", "tool"]  # `developer` has become `system`
    parts: tuple[TextPart | MediaPart, ...]
    reasoning: str | None = field(default=None, repr=False)  # an earlier answer's
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # whose result a `tool` message is


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    parameters: str = field(repr=False)  # JSON Schema of the arguments, an object
    definition: str = field(repr=False)  # JSON of the whole as the client sent it, for the template


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the chat template is given."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    template_kwargs: tuple[tuple[str, object], ...] = ()  # JSON values by name
    reasoning_effort: str | None = None  # OpenAI's word; "none" asks for an answer at once


# Media -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a header tells: upright size in pixels; frames and rate for a clip (1 and 0.0 else)."""

    kind: MediaKind
    width: int
    height: int
    num_frames: int = 1
    fps: float = 0.0  # frames a second of the source


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPlan:
    """What is to be decoded: these frames, in this order, resized to this size."""

    frame_indices: tuple[int, ...]  # (0,) for a picture
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedMedia:
    """A picture or clip of which it is settled what the model will see."""

    probe: Probe
    plan: MediaPlan
    param: str
    options: MediaOptions = MediaOptions()  # what the plan was made for

    @property
    def kind(self) -> MediaKind:
        return self.probe.kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedMedia(PlannedMedia):
    """Decoded and resized."""

    frames: NDArray[np.uint8] = field(repr=False)  # (n, height, width, 3) RGB
    digest: bytes  # blake2b-128 of the original bytes, kind, plan, options and scope
    decode_seconds: float | None = None  # None: it was decoded for an earlier request


class MediaPlanner(Protocol):
    """Qwen's sizes and sampling, as the media room sees them (implemented by the processor)."""

    def plan(self, probe: Probe, options: MediaOptions, param: str) -> MediaPlan:
        """Choose size and frames within the server's limits; InvalidValueError if impossible."""

    def resize(
        self, frames: NDArray[np.uint8], kind: MediaKind, plan: MediaPlan
    ) -> NDArray[np.uint8]:
        """Resize (n, h, w, 3) RGB frames to the plan's size as Qwen's recipe does for this kind."""

    def check(self, media: Many[PlannedMedia]) -> None:
        """ContextLengthError where the media alone would leave no room for an answer."""


# Prompts ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MediaItem:
    """One picture or clip inside a prompt, ready for the vision tower."""

    kind: MediaKind
    digest: bytes
    token_indices: NDArray[np.int64]  # (n,) ascending prompt indices of its placeholder tokens
    pixels: NDArray[np.uint8] = field(repr=False)  # (patches, channels*temporal*patch*patch)
    mean: tuple[float, ...]  # of each channel: the tower sees (pixels - mean) / std
    std: tuple[float, ...]
    grid: tuple[int, int, int]  # patches in time, height, width

    @property
    def num_tokens(self) -> int:
        return len(self.token_indices)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """Token ids, their 3-D rotary positions, and the media between them."""

    token_ids: NDArray[np.int64] = field(repr=False)  # (n,)
    positions: NDArray[np.int64] = field(repr=False)  # (3, n): time, height, width
    position_delta: int  # position of generated token at index i is i + delta, on all three rows
    media: tuple[MediaItem, ...] = ()
    is_thinking: bool = False  # it ends inside an open `<think>`

    def __len__(self) -> int:
        return len(self.token_ids)

    def num_media_tokens(self, kind: MediaKind) -> int:
        return sum(item.num_tokens for item in self.media if item.kind == kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSize:
    """What one picture or clip costs, known before its pixels are touched."""

    media: PlannedMedia
    grid: tuple[int, int, int]  # patches in time, height, width
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptSize:
    """What a prompt costs, known before any pixel is decoded."""

    token_ids: NDArray[np.int64] = field(repr=False)  # (n,)
    message_tokens: tuple[int, ...]  # of what each message says, without the template's words
    media: tuple[MediaSize, ...]


# Sampling --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one sequence chooses its tokens and when it ends. Checked where it is parsed."""

    max_tokens: int
    temperature: float = 1.0  # below 1e-5: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # of the likeliest token's probability, at least
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    seed: int = 0  # drawn by the api when the client gave none
    stop_token_ids: frozenset[int] = frozenset()  # the model's own among them, unless ignored
    min_tokens: int = 0  # no stop token before so many
    logprobs: int | None = None  # how many likeliest tokens to tell beside the chosen one's

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """The model's own `generation_config.json`, where a request is silent."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a client may know of the served model."""

    names: tuple[str, ...]  # the first is the id, the others are aliases
    created: int  # unix seconds
    max_model_len: int  # prompt and answer together, in tokens
    vocab_size: int  # of the model's logits
    eos_token_ids: frozenset[int]
    defaults: SamplingDefaults


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Natural logarithms of probabilities under the model's raw logits."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), likeliest first


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """What the sampler made of one row of logits."""

    token_id: int
    logprobs: TokenLogprobs | None = None  # when asked for


class TokenMask(Protocol):
    """What a grammar allows next. Used by the engine thread alone."""

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        """Set the bits of the allowed tokens: token t is bit t % 32 of word t // 32, (words,)."""

    def accept(self, token_id: int) -> None:
        """Move on: this token was chosen."""


# What an answer must look like -----------------------------------------------------------------

ToolFormat = Literal["hermes", "xml"]  # `<tool_call>{json}</tool_call>`, `<function=name>...`


@dataclass(frozen=True, slots=True)
class JsonGrammar:
    """One JSON document, written compactly."""

    schema: str = field(repr=False)  # JSON Schema


@dataclass(frozen=True, slots=True)
class ChoiceGrammar:
    """One of these texts."""

    options: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """Calls of these tools in the model's own format, and nothing else."""

    tools: tuple[Tool, ...]
    format: ToolFormat
    is_parallel: bool = True  # several calls are allowed


Grammar = JsonGrammar | ChoiceGrammar | ToolGrammar


# Sequences -------------------------------------------------------------------------------------


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    ERROR = "error"  # never on the wire


class SequenceStatus(Enum):
    WAITING = 0
    RUNNING = 1
    FINISHED = 2


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One prompt and what has been generated for it. Changed by the engine thread alone."""

    request_id: str
    prompt: Prompt
    params: SamplingParams
    scope: bytes = b""  # whose caches it may share: one API key's
    mask: TokenMask | None = None
    output_token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_cached: int | None = None  # of the prompt, found in the prefix cache when it first ran
    blocks: list[int] = field(default_factory=list)
    held_media: list[MediaItem] = field(default_factory=list)  # whose features it holds
    arrived: float = 0.0  # when the engine took it in, by the engine's clock
    row: int = -1  # slot in the sampler's per-row state while running
    started: float | None = None  # `time.monotonic` of when it first ran
    status: SequenceStatus = SequenceStatus.WAITING

    def __len__(self) -> int:
        return len(self.prompt) + len(self.output_token_ids)

    @property
    def num_remaining(self) -> int:
        """Tokens known but not yet computed: the rest of the prompt, or the newest token."""
        return len(self) - self.num_computed

    def media_key(self, item: MediaItem) -> MediaKey:
        """The name of an item's features in the encoder cache."""
        return (self.scope, item.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What one step gave one request: a token, an end, or both."""

    request_id: str
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache
    finish_reason: FinishReason | None = None
    error: Exception | None = None  # set when finish_reason is ERROR


Deliver = Callable[[list[StepOutput]], None]  # called once a step by the engine thread


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens [start, start + length) of one sequence, computed in one step."""

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def is_last(self) -> bool:
        """Whether the step computes all that is known, so that a new token can be sampled."""
        return self.end == len(self.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOutput:
    """What a step made of one chunk."""

    is_valid: bool = True  # False: NaN among what it saw or computed, or no token was allowed
    token: SampledToken | None = None  # None: not its sequence's last chunk. Of no use if invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Encode:
    """One item for the vision tower, and the name of its features."""

    key: MediaKey
    item: MediaItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one forward pass computes: pure data, no tensors."""

    chunks: tuple[Chunk, ...]  # decodes first
    encode: tuple[Encode, ...] = ()  # what the vision tower must see first
