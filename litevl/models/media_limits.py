"""A checkpoint's processor files and the server's flags -> the `MediaPolicy` of both.

`processor.py` calls it once. Qwen3-VL's files count a clip's pixels over all frames, the others' of
each frame: here they become the same terms, qwen-vl-utils' own. Knows no pictures.
"""

from typing import Any

from qwen_vl_utils import vision_process as qwen
from transformers import Qwen3VLVideoProcessor

from litevl.config import Config
from litevl.models.media_policy import MediaPolicy, PixelRange
from litevl.models.prompt_text import PromptText


def media_policy_of(
    processor: Any, config: Config, text: PromptText, max_model_len: int
) -> MediaPolicy:
    """The policy of a transformers processor on a server with these settings."""
    picture, video = processor.image_processor, processor.video_processor
    factor = picture.patch_size * picture.merge_size
    counts_all_frames = isinstance(video, Qwen3VLVideoProcessor)
    frame, clip = _frame_ranges(picture, video, factor**2, counts_all_frames)
    # Qwen3-VL writes the time before every pair of frames, and two vision tokens around it.
    overhead = text.count("<1234.5 seconds>") + 2 if counts_all_frames else 0
    return MediaPolicy(
        factor=factor,
        picture=PixelRange(least=picture.size.shortest_edge, most=picture.size.longest_edge),
        frame=frame,
        clip=clip,
        fps=video.fps or qwen.FPS,
        min_frames=video.min_frames or qwen.FPS_MIN_FRAMES,
        default_max_frames=video.max_frames or qwen.FPS_MAX_FRAMES,
        pair_overhead=overhead,
        min_pixels_flag=config.min_pixels,
        max_pixels_flag=config.max_pixels,
        fps_flag=config.fps,
        max_frames_flag=config.max_frames,
        max_item_tokens=max_model_len // 2,
    )


def _frame_ranges(
    picture: Any, video: Any, token_pixels: int, counts_all_frames: bool
) -> tuple[PixelRange, PixelRange]:
    """The checkpoint's pixels of a frame and of a clip, in qwen-vl-utils' terms."""
    frame = PixelRange(
        least=qwen.VIDEO_MIN_TOKEN_NUM * token_pixels, most=qwen.VIDEO_MAX_TOKEN_NUM * token_pixels
    )
    size = video.size
    if counts_all_frames:
        clip = PixelRange(least=size.shortest_edge, most=size.longest_edge)
        return PixelRange(least=0, most=frame.most), clip
    total = qwen.MODEL_SEQ_LEN * token_pixels * 0.9 * qwen.FRAME_FACTOR
    clip = PixelRange(least=0, most=total)
    # Without a video config transformers takes that of pictures: not meant for frames.
    if size == picture.size:
        return frame, clip
    return PixelRange(least=size.shortest_edge, most=size.longest_edge), clip
