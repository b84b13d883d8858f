"""Pictures and clips -> patches, exactly as the Qwen3-VL processors do it, but faster.

Called by ``data.py``; ``check_packing.py`` compares it with the processors of transformers.
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
from training.scenes import Clip, Scene, draw_frame
from training.targets import Cells, cells_of

PATCH, MERGE, FACTOR = 16, 2, 32
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass
class Seen:
    """One picture or clip as the model sees it."""

    patches: Bytes  # (patches, 1536)
    grid: tuple[int, int, int]
    cells: Cells
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


def see_picture(scene: Scene, picture: Image.Image) -> Seen:
    least, most = PICTURE_PIXELS["shortest_edge"], PICTURE_PIXELS["longest_edge"]
    height, width = smart_resize(picture.height, picture.width, FACTOR, least, most)
    frame = shrink(to_tensor(picture)[None], height, width)
    grid = (1, height // PATCH, width // PATCH)
    cells = cells_of([scene], height // FACTOR, width // FACTOR)
    return Seen(patchify(torch.cat([frame, frame])), grid, cells, ())


def frame_indices(frames: int, fps: float) -> list[int]:
    """qwen-vl-utils' choice: two frames a second, at least four, an even number."""
    wanted = min(max(frames / fps * 2, 4), min(768, frames) // 2 * 2)
    count = int(wanted) // 2 * 2
    return [int(i) for i in torch.linspace(0, frames - 1, count).round().long()]


def see_clip(clip: Clip) -> Seen:
    indices = frame_indices(clip.frames, clip.fps)
    frames = torch.stack([to_tensor(draw_frame(clip, i, fine=2)) for i in indices])
    least, most = CLIP_PIXELS["shortest_edge"], CLIP_PIXELS["longest_edge"]
    height, width = smart_resize_clip(
        len(indices), frames.shape[2], frames.shape[3], 2, FACTOR, least, most
    )
    frames = shrink(frames, height, width)
    pairs = list(zip(indices[::2], indices[1::2], strict=True))
    times = tuple((a / clip.fps + b / clip.fps) / 2 for a, b in pairs)
    middle = [clip.at((a + b) / 2 / max(1, clip.frames - 1)) for a, b in pairs]
    cells = cells_of(middle, height // FACTOR, width // FACTOR)
    grid = (len(pairs), height // PATCH, width // PATCH)
    return Seen(patchify(frames), grid, cells, times)
