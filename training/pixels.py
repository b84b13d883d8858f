"""Pictures and clips -> patches, exactly as the Qwen3-VL processors do it, but faster.

Called by ``look.py`` and ``data.py``; ``check_packing.py`` compares it with the processors of
transformers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_clip

from training.export import CLIP_PIXELS, PICTURE_PIXELS
from training.scenes import Clip, draw_frame

PATCH, MERGE, FACTOR = 16, 2, 32
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass
class Seen:
    """One picture or clip as the model sees it."""

    patches: Bytes  # (patches, 1536)
    grid: tuple[int, int, int]
    times: tuple[float, ...]  # of a clip's temporal patches; empty for a picture


def patchify(frames: torch.Tensor) -> Bytes:
    """(frames, 3, height, width) -> rows of 3 x 2 x 16 x 16, in the merger's order."""
    count, _, height, width = frames.shape
    rows, columns = height // FACTOR, width // FACTOR
    view = frames.view(count // 2, 2, 3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    return view.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 1536).numpy()


def shrink(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if frames.shape[-2:] == (height, width):
        return frames
    smaller: torch.Tensor = F.resize(
        frames, [height, width], F.InterpolationMode.BICUBIC, antialias=True
    )
    return smaller


def to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def picture_grid(width: int, height: int) -> tuple[int, int]:
    """Patches down and across that a picture of that size is brought to."""
    least, most = PICTURE_PIXELS["shortest_edge"], PICTURE_PIXELS["longest_edge"]
    high, wide = smart_resize(height, width, FACTOR, least, most)
    return high // PATCH, wide // PATCH


def clip_grid(frames: int, width: int, height: int) -> tuple[int, int]:
    """Patches down and across that so many frames of that size are brought to."""
    least, most = CLIP_PIXELS["shortest_edge"], CLIP_PIXELS["longest_edge"]
    high, wide = smart_resize_clip(frames, height, width, 2, FACTOR, least, most)
    return high // PATCH, wide // PATCH


def see_picture(picture: Image.Image) -> Seen:
    rows, columns = picture_grid(*picture.size)
    frame = shrink(to_tensor(picture)[None], rows * PATCH, columns * PATCH)
    return Seen(patchify(torch.cat([frame, frame])), (1, rows, columns), ())


def frame_indices(frames: int, fps: float) -> list[int]:
    """qwen-vl-utils' choice: two frames a second, at least four, an even number."""
    wanted = min(max(frames / fps * 2, 4), min(768, frames) // 2 * 2)
    count = int(wanted) // 2 * 2
    return [int(i) for i in torch.linspace(0, frames - 1, count).round().long()]


def see_clip(clip: Clip) -> Seen:
    indices = frame_indices(clip.frames, clip.fps)
    frames = torch.stack([to_tensor(draw_frame(clip, i, fine=2)) for i in indices])
    rows, columns = clip_grid(len(indices), frames.shape[3], frames.shape[2])
    frames = shrink(frames, rows * PATCH, columns * PATCH)
    pairs = list(zip(indices[::2], indices[1::2], strict=True))
    times = tuple((a / clip.fps + b / clip.fps) / 2 for a, b in pairs)
    return Seen(patchify(frames), (len(pairs), rows, columns), times)
