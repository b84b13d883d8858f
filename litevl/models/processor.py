"""Conversations and pixels to ids, patches and 3-D positions, exactly as Qwen's own recipe does.

The recipe: qwen-vl-utils chooses and resizes, then the checkpoint's transformers processor, called
with `do_resize=False` and the clip's metadata, expands placeholders and makes patches; the model
class' own `get_rope_index` gives positions. The media room asks `plan` and `resize`, the api
`prepare` and `token_bytes`; every method may be called from several threads at once. Knows neither
where pixels come from nor what becomes of the ids; needs no weights.
"""

import copy
import math
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize as resize_frames
from transformers import (
    MODEL_MAPPING,
    AutoProcessor,
    PretrainedConfig,
)
from transformers.video_utils import VideoMetadata

from litevl.config import Config
from litevl.errors import ConfigError, ContextLengthError, InternalError, InvalidValueError
from litevl.models.media_limits import media_policy_of
from litevl.models.prompt_text import PromptText, Rendered
from litevl.sequence import (
    Conversation,
    LoadedMedia,
    MediaItem,
    MediaKind,
    MediaOptions,
    MediaPart,
    MediaPlan,
    MediaSize,
    Message,
    PlannedMedia,
    Probe,
    Prompt,
    PromptSize,
    TextPart,
)

FITTING_ROUNDS = 8
_AS_BYTES = {"do_resize": False, "do_rescale": False, "do_normalize": False}


def read_processor(path: str) -> Any:
    """A checkpoint's processor as transformers has it; `ConfigError` if its files are no good.

    No code of the checkpoint's runs: left unset, transformers would ask on the terminal.
    """
    factory: Any = AutoProcessor
    try:
        processor = factory.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it needs code of its own (auto_map), and litevl runs no checkpoint's code"
        raise ConfigError(f"{path} has no usable tokenizer or processor: {reason}") from error
    if not hasattr(processor, "video_processor"):  # transformers takes what it knows of the rest
        raise ConfigError(f"{path} has no processor of a kind that transformers knows")
    return processor


class Processor:
    """One checkpoint's way to read messages, pictures and clips."""

    def __init__(
        self, processor: Any, model_config: PretrainedConfig, config: Config, *, max_model_len: int
    ) -> None:
        processor.video_processor.cap_pixels_per_frame = True  # never resizes here, but unset warns
        self._hf = processor  # the one seam to transformers' untyped processors
        self._text = text = PromptText(processor)
        # What has nothing to do with pictures is asked of the text itself.
        self.tokenizer = text.tokenizer
        self.tool_format = text.tool_format
        self.decode = text.decode
        self.token_name = text.token_name
        self.token_bytes = text.token_bytes
        self._get_rope_index = _rope_index_of(model_config)
        self._vocab_size = int(model_config.get_text_config().vocab_size)
        self._max_model_len = max_model_len
        self._policy = media_policy_of(processor, config, self._text, max_model_len)

    @classmethod
    def load(cls, path: str, model_config: PretrainedConfig, config: Config) -> "Processor":
        """Read a checkpoint's tokenizer and processor files; `ConfigError` if they are no good.

        The context limit is the model's own until `with_max_model_len` says otherwise.
        """
        limit = model_config.get_text_config().max_position_embeddings
        return cls(read_processor(path), model_config, config, max_model_len=limit)

    def with_max_model_len(self, max_model_len: int) -> "Processor":
        """The same processor under another context limit.

        It bounds a prompt; half of it is the default cap of one picture or clip.
        """
        bound = copy.copy(self)
        bound._max_model_len = max_model_len
        bound._policy = replace(self._policy, max_item_tokens=max_model_len // 2)
        return bound

    # For the media room ----------------------------------------------------------------------

    def plan(self, probe: Probe, options: MediaOptions, param: str) -> MediaPlan:
        """Choose size and frames; `InvalidValueError` when the keys contradict each other."""
        return self._policy.plan(probe, options, param)

    def check(self, media: Many[PlannedMedia]) -> None:
        """Before they are decoded: `ContextLengthError` where the media alone cannot fit."""
        self._check_length(0, [self._size(each) for each in media])

    def resize(
        self, frames: NDArray[np.uint8], kind: MediaKind, plan: MediaPlan
    ) -> NDArray[np.uint8]:
        """Resize (n, h, w, 3) RGB frames to the plan's size: a picture by Pillow, frames by torch.

        Frames of a clip may come in any batches: each is resized alone.
        """
        if kind == "image":
            picture = Image.fromarray(frames[0]).resize((plan.width, plan.height))
            return np.asarray(picture)[None]
        resized = resize_frames(
            _channels_first(frames),
            [plan.height, plan.width],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        )
        result: NDArray[np.uint8] = resized.permute(0, 2, 3, 1).numpy()
        return result

    # For the api -----------------------------------------------------------------------------

    def prepare(self, conversation: Conversation, media: Many[LoadedMedia]) -> Prompt:
        """Ids, positions and patches of a conversation.

        Raises `InvalidValueError` where the chat template cannot take the conversation and
        `ContextLengthError`, before any patch is computed, where the prompt leaves no room.
        """
        order = [media[part.index] for part in _media_parts(conversation.messages)]
        sized = [self._size(each) for each in order]
        self._check_length(self._text.least_tokens(conversation), [])  # before any slow work
        rendered = self._text.render(conversation, media)
        self._check_length(rendered.least_tokens, [])  # with the tools, before the slowest
        if sized:
            self._check_length(self._text_tokens(rendered, sized), sized)
        token_ids = self._encode(rendered, sized)
        places = self._places(token_ids, sized)
        self._check_length(len(token_ids) - sum(each.num_tokens for each in sized), sized)
        positions, delta = self._rope_index(token_ids, sized)
        return Prompt(
            token_ids=token_ids,
            positions=positions,
            position_delta=delta,
            media=tuple(self._item(*each) for each in zip(order, sized, places, strict=True)),
            is_thinking=rendered.is_thinking,
        )

    def measure(self, conversation: Conversation, media: Many[PlannedMedia]) -> PromptSize:
        """What `prepare` would make, without pixels; a little too long is no error here.

        `ContextLengthError` where the text alone cannot fit, before it is looked at.
        """
        self._check_length(self._text.least_tokens(conversation), [])
        rendered = self._text.render(conversation, media)
        self._check_length(rendered.least_tokens, [])  # with the tools, before the slowest
        sized = [self._size(media[p.index]) for p in _media_parts(conversation.messages)]
        rest = iter(sized)
        message_tokens = []
        for message in conversation.messages:
            texts = [part.text for part in message.parts if isinstance(part, TextPart)]
            pictures = islice(rest, len(message.parts) - len(texts))
            count = sum(map(self._text.count, texts)) + sum(each.num_tokens for each in pictures)
            message_tokens.append(count)
        return PromptSize(
            token_ids=self._encode(rendered, sized),
            message_tokens=tuple(message_tokens),
            media=tuple(sized),
        )

    def fit(
        self, conversation: Conversation, media: Many[PlannedMedia], reserve: int
    ) -> list[PlannedMedia]:
        """The media shrunk and thinned, the largest first, until `reserve` tokens are left beside
        the prompt; as far as that is possible."""
        media = list(media)
        for _ in range(FITTING_ROUNDS):  # text around a clip's frames goes with them
            over = len(self.measure(conversation, media).token_ids) + reserve - self._max_model_len
            sizes = [self._size(each).num_tokens for each in media]
            room = sum(sizes) - over
            if over <= 0 or room < len(media):
                break
            share = _equal_share(sizes, room)
            media = [
                self._within(each, share) if size > share else each
                for each, size in zip(media, sizes, strict=True)
            ]
        return media

    def text_prompt(self, text: str | Many[int]) -> Prompt:
        """Text, or token ids, as they are; `InvalidValueError` for ids that cannot be.

        `ContextLengthError` for what cannot fit, before it is tokenised or looked at.
        """
        least = self._text.least_tokens_of(text) if isinstance(text, str) else len(text)
        self._check_length(least, [], param="prompt")
        ids = self._text.encode_text(text) if isinstance(text, str) else text
        token_ids = np.array(ids, dtype=np.int64)
        if not len(token_ids):
            raise InvalidValueError("`prompt` must hold at least one token.", param="prompt")
        if token_ids.max() >= self._vocab_size:
            message = f"`prompt` must be made of token ids below {self._vocab_size}."
            raise InvalidValueError(message, param="prompt")
        if np.isin(token_ids, (self._hf.image_token_id, self._hf.video_token_id)).any():
            message = "`prompt` must be text: pictures and clips are for chat completions."
            raise InvalidValueError(message, param="prompt")
        positions = np.tile(np.arange(len(token_ids)), (3, 1))
        return Prompt(token_ids=token_ids, positions=positions, position_delta=0)

    # Ids -------------------------------------------------------------------------------------

    def _encode(self, rendered: Rendered, sized: Many[MediaSize]) -> NDArray[np.int64]:
        ids = self._text.encode(rendered, lambda text: self._expand(text, sized))
        return np.array(ids, dtype=np.int64)

    def _text_tokens(self, rendered: Rendered, sized: Many[MediaSize]) -> int:
        """All but what the media become, counted while each still is one placeholder."""
        return len(self._text.encode(rendered, lambda text: text)) - len(sized)

    def _within(self, media: PlannedMedia, max_tokens: int) -> PlannedMedia:
        policy = self._policy.within(max_tokens, media.probe)
        return replace(media, plan=policy.plan(media.probe, media.options, media.param))

    def _size(self, media: PlannedMedia) -> MediaSize:
        reader = self._hf.image_processor if media.kind == "image" else self._hf.video_processor
        depth = 1 if media.kind == "image" else reader.temporal_patch_size
        pairs = -(-len(media.plan.frame_indices) // depth)
        size = (media.plan.height // reader.patch_size, media.plan.width // reader.patch_size)
        num_tokens = pairs * size[0] * size[1] // reader.merge_size**2
        return MediaSize(media=media, grid=(pairs, *size), num_tokens=num_tokens)

    def _expand(self, text: str, sized: Many[MediaSize]) -> str:
        """Let transformers write each placeholder as often as its medium has tokens."""
        pictures, clips = _of_kind(sized, "image"), _of_kind(sized, "video")
        found = text.count(self._hf.image_token), text.count(self._hf.video_token)
        if found != (len(pictures), len(clips)):
            message = "the model's chat template takes pictures and clips only in user messages"
            raise InvalidValueError(message, param="messages")
        grids: dict[str, Any] = {
            "image_grid_thw": _grids(pictures),
            "video_grid_thw": _grids(clips),
        }
        grids["video_metadata"] = [_metadata(clip.media) for clip in clips]
        expanded, _ = self._hf.get_text_with_replacements(
            [text],
            [self._hf.replace_image_token(grids, image_idx=i) for i in range(len(pictures))],
            [self._hf.replace_video_token(grids, video_idx=i) for i in range(len(clips))],
        )
        return str(expanded[0])

    def _check_length(
        self, text_tokens: int, sized: Many[MediaSize], param: str = "messages"
    ) -> None:
        media_tokens = sum(each.num_tokens for each in sized)
        limit = self._max_model_len - 1  # the answer needs one
        if text_tokens + media_tokens <= limit:
            return
        message = (
            f"This model's maximum context length is {self._max_model_len} tokens: the prompt "
            f"needs at least {text_tokens + media_tokens} and {limit} fit beside an answer."
        )
        if sized:
            room = max(0, limit - text_tokens) // len(sized)
            message += (
                f" Pictures and clips take {media_tokens} of them; {room} for each would fit"
                f" ({self._remedy(sized, room)}), and `media_fit: auto` sees to that."
            )
        raise ContextLengthError(message, param=param)

    def _remedy(self, sized: Many[MediaSize], room: int) -> str:
        """The keys with which each of the media would take `room` tokens."""
        remedies, pixels = [], room * self._policy.factor**2
        if _of_kind(sized, "image"):
            remedies.append(f"a picture: max_pixels {pixels}")
        if clips := _of_kind(sized, "video"):
            costly = max(clips, key=lambda each: each.num_tokens)
            rate = _metadata(costly.media).sampled_fps * room / costly.num_tokens
            # Fewer frames would grow, were they not kept at their size.
            pixels = min(pixels, costly.media.plan.width * costly.media.plan.height)
            remedies.append(f"a clip: fps {math.floor(rate * 1000) / 1000:g} max_pixels {pixels}")
        return "; ".join(remedies)

    def _places(
        self, token_ids: NDArray[np.int64], sized: Many[MediaSize]
    ) -> list[NDArray[np.int64]]:
        """The prompt indices of each medium's placeholder tokens, in the order of `sized`."""
        places: dict[MediaKind, list[NDArray[np.int64]]] = {}
        kinds: tuple[tuple[MediaKind, int], ...]
        kinds = (("image", self._hf.image_token_id), ("video", self._hf.video_token_id))
        for kind, token_id in kinds:
            found = np.flatnonzero(token_ids == token_id)
            counts = [each.num_tokens for each in _of_kind(sized, kind)]
            if len(found) != sum(counts):
                message = f"{len(found)} {kind} placeholders for {sum(counts)} features"
                raise InternalError(message)
            places[kind] = np.split(found, np.cumsum(counts)[:-1]) if counts else []
        return [places[each.media.kind].pop(0) for each in sized]

    # Positions -------------------------------------------------------------------------------

    def _rope_index(
        self, token_ids: NDArray[np.int64], sized: Many[MediaSize]
    ) -> tuple[NDArray[np.int64], int]:
        pictures, clips = _of_kind(sized, "image"), _of_kind(sized, "video")
        kinds = 1 * (token_ids == self._hf.image_token_id) + 2 * (
            token_ids == self._hf.video_token_id
        )
        depth = self._hf.video_processor.temporal_patch_size
        seconds = [depth / _metadata(clip.media).sampled_fps for clip in clips]
        positions, deltas = self._get_rope_index(
            input_ids=torch.from_numpy(token_ids)[None],
            mm_token_type_ids=torch.from_numpy(kinds)[None],
            image_grid_thw=_grids(pictures),
            video_grid_thw=_grids(clips),
            second_per_grid_ts=torch.tensor(seconds) if clips else None,  # read by Qwen2.5-VL only
        )
        return positions[:, 0].numpy(), int(deltas[0, 0])

    # Pixels ----------------------------------------------------------------------------------

    def _item(self, media: LoadedMedia, sized: MediaSize, places: NDArray[np.int64]) -> MediaItem:
        """Its patches as bytes, a quarter of float32; `qwen_vl.normalised` does the rest."""
        if media.kind == "image":
            reader = self._hf.image_processor
            picture = Image.fromarray(media.frames[0])
            output = reader(images=[picture], return_tensors="pt", **_AS_BYTES)
            pixels, grid = output["pixel_values"], output["image_grid_thw"]
        else:
            reader = self._hf.video_processor
            output = reader(
                videos=[_channels_first(media.frames)],
                video_metadata=[_metadata(media)],
                do_sample_frames=False,
                return_tensors="pt",
                **_AS_BYTES,
            )
            pixels, grid = output["pixel_values_videos"], output["video_grid_thw"]
        if tuple(grid[0].tolist()) != sized.grid:
            raise InternalError(
                f"the processor made a grid of {grid[0].tolist()}, not {sized.grid}"
            )
        return MediaItem(
            kind=media.kind,
            digest=media.digest,
            token_indices=places,
            pixels=pixels.numpy(),
            mean=_scaled(reader.image_mean, reader.rescale_factor),
            std=_scaled(reader.image_std, reader.rescale_factor),
            grid=sized.grid,
        )


def _equal_share(sizes: Many[int], room: int) -> int:
    """The most that each may take so that all fit into `room`, small ones leaving theirs over."""
    for index, size in enumerate(sorted(sizes)):
        share = room // (len(sizes) - index)
        if size > share:
            return max(share, 1)
        room -= size
    return max(sizes)


def _media_parts(messages: Many[Message]) -> Iterator[MediaPart]:
    for message in messages:
        for part in message.parts:
            if isinstance(part, MediaPart):
                yield part


def _of_kind(sized: Many[MediaSize], kind: MediaKind) -> list[MediaSize]:
    return [each for each in sized if each.media.kind == kind]


def _grids(sized: Many[MediaSize]) -> torch.Tensor | None:
    return torch.tensor([each.grid for each in sized]) if sized else None


def _channels_first(frames: NDArray[np.uint8]) -> torch.Tensor:
    return torch.tensor(frames).permute(0, 3, 1, 2)


def _scaled(values: Many[float], rescale_factor: float) -> tuple[float, ...]:
    """A mean or deviation of pixels from 0 to 255, in float32 as transformers computes it."""
    return tuple((torch.tensor(values) * (1.0 / rescale_factor)).tolist())


def _metadata(media: PlannedMedia) -> VideoMetadata:
    """What qwen-vl-utils' reader tells: the source's rate, and how many frames it chose from."""
    indices = media.plan.frame_indices
    return VideoMetadata(
        total_num_frames=indices[-1] - indices[0] + 1,
        fps=media.probe.fps,
        frames_indices=list(indices),
    )


def _rope_index_of(model_config: PretrainedConfig) -> Any:
    """The model class' `get_rope_index` without a model: it reads nothing of one but its config."""
    model_class: Any = MODEL_MAPPING[type(model_config)]
    stand_in = SimpleNamespace(config=model_config)
    stand_in.get_vision_position_ids = model_class.get_vision_position_ids.__get__(stand_in)
    return model_class.get_rope_index.__get__(stand_in)
