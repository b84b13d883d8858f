"""What the model really saw of a picture or clip, told with the answer. Used by `chat.py`."""

from collections.abc import Iterable
from collections.abc import Sequence as Many

from litevl.api.fields import JSONObject
from litevl.sequence import MediaItem, MediaSize, PlannedMedia


def receipt(media: PlannedMedia, size: MediaItem | MediaSize) -> JSONObject:
    """Sizes as [width, height] in pixels, times in seconds, `grid` in patches."""
    probe, plan = media.probe, media.plan
    told: JSONObject = {
        "kind": media.kind,
        "original_size": [probe.width, probe.height],
        "seen_size": [plan.width, plan.height],
        "grid": list(size.grid),
        "tokens": size.num_tokens,
        "scale": [round(plan.width / probe.width, 6), round(plan.height / probe.height, 6)],
    }
    if media.kind == "image":
        return told
    indices = plan.frame_indices
    span = indices[-1] - indices[0] + 1
    return told | {
        "source_fps": round(probe.fps, 6),
        "duration": round(probe.num_frames / probe.fps, 6),
        "sampled_fps": round(len(indices) * probe.fps / span, 6),
        "frame_times": [round(index / probe.fps, 6) for index in indices],
    }


def receipts(media: Many[PlannedMedia], sizes: Iterable[MediaItem | MediaSize]) -> list[JSONObject]:
    """One for each picture and clip, in the order of the messages."""
    return [receipt(*pair) for pair in zip(media, sizes, strict=True)]
