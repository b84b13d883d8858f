"""Sizes of pictures and frames, and which frames of a clip: Qwen's arithmetic, bounded.

`processor.py` builds one policy from a checkpoint and the server's settings. qwen-vl-utils'
calculators decide; this module gives them limits in this order: the part's keys, the server's
flags, the checkpoint's processor config, qwen-vl-utils' constants. Whatever a part asks, the cost
stays under the server's limit. Knows no pixels, no transformers and no HTTP.
"""

import math
from dataclasses import dataclass, replace

import torch
from qwen_vl_utils import vision_process as qwen

from litevl.errors import InvalidValueError
from litevl.sequence import MediaOptions, MediaPlan, Probe

# A clip is thinned until each frame can keep this many tokens (or its own size): it is what
# Qwen3-VL's released budget leaves to each of 768 frames.
_LEGIBLE_TOKENS = 32
_LOW_DETAIL_TOKENS = 256  # 448 or 512 pixels square


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelRange:
    """Least and most pixels, both inclusive."""

    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPolicy:
    """The limits of one checkpoint on one server. `None` in a flag means that it was not given."""

    factor: int  # side in pixels of what becomes one token: patch size times merge size
    picture: PixelRange  # the checkpoint's
    frame: PixelRange  # the checkpoint's, for each frame
    clip: PixelRange  # the checkpoint's, for all frames together
    fps: float  # the checkpoint's
    min_frames: int  # the checkpoint's
    default_max_frames: int  # the checkpoint's
    pair_overhead: int  # tokens of text around every pair of frames (timestamps)
    min_pixels_flag: int | None
    max_pixels_flag: int | None
    fps_flag: float | None
    max_frames_flag: int
    max_item_tokens: int  # half the context: the cap of one picture or clip

    def plan(self, probe: Probe, options: MediaOptions, param: str) -> MediaPlan:
        """Choose size and frames.

        A clip of a single frame is that frame twice: the model looks at frames in pairs.
        Raises `InvalidValueError` when the keys ask what it does not have, naming the part, which
        is `param`, and the key.
        """
        try:
            if probe.kind == "image":
                height, width = self._picture_size(probe, options)
                return MediaPlan(frame_indices=(0,), width=width, height=height)
            indices = self._frame_indices(probe, options)
            height, width = self._frame_size(probe, options, len(indices))
            return MediaPlan(frame_indices=indices, width=width, height=height)
        except InvalidValueError as error:
            error.param = f"{param}.{error.param}" if error.param else param
            raise

    def within(self, max_tokens: int, probe: Probe) -> "MediaPolicy":
        """The same limits, and so many tokens at most for this picture or clip."""
        tight = replace(self, max_item_tokens=max_tokens)
        if probe.kind == "video":
            return tight
        pixels = max_tokens * self._token_pixels
        return replace(tight, max_pixels_flag=min(self.max_pixels_flag or pixels, pixels))

    @property
    def _token_pixels(self) -> int:
        return self.factor**2

    # Sizes ---------------------------------------------------------------------------------

    def _picture_size(self, probe: Probe, options: MediaOptions) -> tuple[int, int]:
        cap = self.max_pixels_flag or self.max_item_tokens * self._token_pixels
        if options.resized_height and options.resized_width:
            return self._fixed_size(options.resized_height, options.resized_width, cap)
        least = options.min_pixels or self.min_pixels_flag or self.picture.least
        most = options.max_pixels or self._default(self.picture.most, options)
        return self._fit(probe.height, probe.width, least, min(most, cap))

    def _frame_size(self, probe: Probe, options: MediaOptions, nframes: int) -> tuple[int, int]:
        share = self.max_item_tokens // _pairs(nframes) - self.pair_overhead
        cap = min(share * self._token_pixels, self.max_pixels_flag or math.inf)
        if options.resized_height and options.resized_width:
            return self._fixed_size(options.resized_height, options.resized_width, cap)
        least = self._least_frame_pixels(options, nframes)
        total = self.clip.most
        if options.total_pixels:  # Qwen counts these per token, that is per pair of frames
            total = options.total_pixels * qwen.FRAME_FACTOR
        bound = min(qwen.VIDEO_MAX_TOKEN_NUM * self._token_pixels, total / nframes)
        bound = max(bound, int(least * 1.05))
        most = options.max_pixels or self._default(self.frame.most, options)
        return self._fit(probe.height, probe.width, least, min(most, bound, cap))

    def _default(self, checkpoint: float, options: MediaOptions) -> float:
        """Most pixels where the part names none: OpenAI's `low` is a glance, `high` as `auto`; so
        many at any rate that the least which the part does name can be reached in whole tokens."""
        most = self.max_pixels_flag or checkpoint
        if options.detail == "low":
            most = min(most, _LOW_DETAIL_TOKENS * self._token_pixels)
        return max(most, 1.25 * (options.min_pixels or 0))

    def _least_frame_pixels(self, options: MediaOptions, nframes: int) -> float:
        checkpoint = max(self.frame.least, self.clip.least / nframes)
        return options.min_pixels or self.min_pixels_flag or checkpoint

    def _fixed_size(self, height: int, width: int, cap: float) -> tuple[int, int]:
        least = qwen.IMAGE_MIN_TOKEN_NUM * self._token_pixels
        most = qwen.IMAGE_MAX_TOKEN_NUM * self._token_pixels
        try:
            return self._fit(height, width, least, min(most, cap))
        except InvalidValueError as error:
            error.param = "resized_height"
            raise

    def _fit(self, height: int, width: int, least: float, most: float) -> tuple[int, int]:
        """Qwen's `smart_resize`, but it never rounds above `most` nor to nothing."""
        most = max(most, self._token_pixels)
        size: tuple[int, int]
        try:
            size = qwen.smart_resize(height, width, self.factor, min(least, most), most)
            if size[0] * size[1] > most:  # `least` was rounded up past `most`
                shrunk = qwen.smart_resize(*size, self.factor, 0, most)
                size = self._between(size, shrunk, least, most) or shrunk
        except ValueError:
            message = f"one side is more than {qwen.MAX_RATIO} times the other ({width}x{height})"
            raise InvalidValueError(
                f"{message}: crop it, or set resized_height and resized_width to another shape"
            ) from None
        if 0 in size:  # a thin strip: one token across, as long as the cap allows
            longest = min(int(most // self._token_pixels), max(size) // self.factor)
            longest = self.factor * max(1, longest)
            return (self.factor, longest) if width > height else (longest, self.factor)
        return size

    def _between(
        self, above: tuple[int, int], below: tuple[int, int], least: float, most: float
    ) -> tuple[int, int] | None:
        """Of the sizes between these two, the one within both limits that is bent the least."""
        heights = range(below[0], above[0] + 1, self.factor)
        widths = range(below[1], above[1] + 1, self.factor)
        fitting = [(h, w) for h in heights for w in widths if least <= h * w <= most]
        shape = above[0] / above[1]
        return min(fitting, key=lambda each: abs(math.log(each[0] / each[1] / shape)), default=None)

    # Frames --------------------------------------------------------------------------------

    def _frame_indices(self, probe: Probe, options: MediaOptions) -> tuple[int, ...]:
        num_frames = max(probe.num_frames, qwen.FRAME_FACTOR)
        keys = _given(video_start=options.video_start, video_end=options.video_end)
        try:
            first, last, count = qwen.calculate_video_frame_range(keys, num_frames, probe.fps)
        except ValueError:
            seconds = probe.num_frames / probe.fps
            message = "video_start must lie before video_end, with at least two frames between them"
            key = "video_end" if options.video_start is None else "video_start"
            message = f"{message}; the clip is {seconds:.2f} s long"
            raise InvalidValueError(message, param=key) from None
        nframes = self._num_frames(probe, options, count, probe.fps)
        indices = torch.linspace(first, last, nframes).round().long()  # as its decord reader does
        return tuple(indices.clamp(max=probe.num_frames - 1).tolist())

    def _num_frames(self, probe: Probe, options: MediaOptions, count: int, fps: float) -> int:
        """How many of `count` frames to see: even, at least two."""
        cap = min(self._max_frames(probe, options, count / fps), count)
        try:
            if options.nframes is not None:
                asked = qwen.smart_nframes({"nframes": options.nframes}, count, fps)
                return int(min(asked, qwen.floor_by_factor(cap, qwen.FRAME_FACTOR)))
            rate = options.fps or self.fps_flag or self.fps
            most = options.max_frames or self.default_max_frames
            keys = {"fps": min(rate, self.fps_flag or rate), "max_frames": min(most, cap)}
            keys["min_frames"] = options.min_frames or self.min_frames
            return int(qwen.smart_nframes(keys, count, fps))
        except ValueError:
            most = count // 2 * 2  # models look at pairs
            message = f"nframes and max_frames must leave an even number of frames, 2 to {most}"
            key = "max_frames" if options.nframes is None else "nframes"
            message = f"{message}: the clip has {count} to choose from"
            raise InvalidValueError(message, param=key) from None

    def _max_frames(self, probe: Probe, options: MediaOptions, seconds: float) -> int:
        """The server's cap: its flags, and as many as can be legible in half the context."""
        native = math.ceil(probe.height * probe.width / self._token_pixels)
        least = math.ceil(
            self._least_frame_pixels(options, self.max_frames_flag) / self._token_pixels
        )
        legible = max(least, min(native, _LEGIBLE_TOKENS)) + self.pair_overhead
        caps = [self.max_frames_flag, qwen.FRAME_FACTOR * (self.max_item_tokens // legible)]
        if self.fps_flag is not None:
            caps.append(max(qwen.FPS_MIN_FRAMES, math.ceil(seconds * self.fps_flag)))
        return int(max(qwen.FRAME_FACTOR, min(caps)))


def _given(**keys: float | None) -> dict[str, float]:
    return {name: value for name, value in keys.items() if value is not None}


def _pairs(nframes: int) -> int:
    return -(-nframes // 2)
