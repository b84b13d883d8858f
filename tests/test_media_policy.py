"""Sizes and frames are Qwen's within the limits, and within the limits whatever a part asks."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qwen_vl_utils import smart_resize

from litevl.errors import InvalidValueError
from litevl.models.media_policy import MediaPolicy, PixelRange
from litevl.sequence import MediaOptions, Probe

DEFAULTS = MediaPolicy(
    factor=28,
    picture=PixelRange(least=3136, most=12845056),
    frame=PixelRange(least=100352, most=602112),
    clip=PixelRange(least=0, most=1.8e8),
    fps=2.0,
    min_frames=4,
    default_max_frames=768,
    pair_overhead=0,
    min_pixels_flag=None,
    max_pixels_flag=None,
    fps_flag=None,
    max_frames_flag=768,
    max_item_tokens=2048,
)

pixels = st.none() | st.integers(1, 10**7)
rates = st.none() | st.floats(0.01, 200)
policies = st.builds(
    MediaPolicy,
    factor=st.sampled_from([28, 32]),
    picture=st.just(PixelRange(least=3136, most=12845056)),
    frame=st.sampled_from(
        [PixelRange(least=0, most=786432), PixelRange(least=100352, most=602112)]
    ),
    clip=st.sampled_from([PixelRange(least=0, most=1.8e8), PixelRange(least=4096, most=25165824)]),
    fps=st.just(2.0),
    min_frames=st.just(4),
    default_max_frames=st.just(768),
    pair_overhead=st.integers(0, 20),
    min_pixels_flag=pixels,
    max_pixels_flag=pixels,
    fps_flag=rates,
    max_frames_flag=st.integers(1, 1000),
    max_item_tokens=st.integers(1, 20000),
)
options = st.builds(
    MediaOptions,
    min_pixels=pixels,
    max_pixels=pixels,
    total_pixels=pixels,
    resized_height=st.none() | st.integers(1, 5000),
    resized_width=st.none() | st.integers(1, 5000),
    fps=rates,
    nframes=st.none() | st.integers(1, 1000),
    min_frames=st.none() | st.integers(1, 1000),
    max_frames=st.none() | st.integers(1, 1000),
    video_start=st.none() | st.floats(0, 100),
    video_end=st.none() | st.floats(0, 100),
)
probes = st.builds(
    Probe,
    kind=st.sampled_from(["image", "video"]),
    width=st.integers(1, 8000),
    height=st.integers(1, 8000),
    num_frames=st.integers(1, 5000),
    fps=st.floats(0.1, 240),
)


@given(policy=policies, options=options, probe=probes)
def test_whatever_a_part_asks_the_cost_stays_under_the_servers_limit(
    policy: MediaPolicy, options: MediaOptions, probe: Probe
) -> None:
    try:
        plan = policy.plan(probe, options, "p")
    except InvalidValueError:
        return
    assert plan.width % policy.factor == plan.height % policy.factor == 0
    assert plan.width and plan.height
    tokens = plan.width * plan.height // policy.factor**2
    by_flag = (policy.max_pixels_flag or 10**9) // policy.factor**2
    if probe.kind == "image":
        cap = by_flag if policy.max_pixels_flag else policy.max_item_tokens
        assert tokens <= max(1, cap)
        return
    count, pairs = len(plan.frame_indices), len(plan.frame_indices) // 2
    assert count % 2 == 0 and 2 <= count <= max(2, policy.max_frames_flag)
    assert list(plan.frame_indices) == sorted(plan.frame_indices)
    assert plan.frame_indices[0] >= 0
    assert plan.frame_indices[-1] < probe.num_frames
    assert tokens <= max(1, by_flag)
    cost = pairs * (tokens + policy.pair_overhead)
    assert cost <= max(policy.max_item_tokens, 1 + policy.pair_overhead)


@given(probe=probes)
def test_a_picture_within_the_limits_has_the_size_that_qwen_gives_it(probe: Probe) -> None:
    policy = replace(DEFAULTS, max_item_tokens=16384)
    image = replace(probe, kind="image")
    if max(image.width, image.height) > 200 * min(image.width, image.height):
        return
    plan = policy.plan(image, MediaOptions(), "p")
    assert (plan.height, plan.width) == smart_resize(image.height, image.width, 28, 3136, 12845056)


@pytest.mark.parametrize(
    "keys",
    [
        {"nframes": 12},
        {"nframes": 1},
        {"max_frames": 1},
        {"video_start": 0.9, "video_end": 0.2},
        {"video_start": 50.0},
        {"resized_height": 28, "resized_width": 28 * 300},
    ],
    ids=str,
)
def test_keys_that_the_clip_cannot_meet_are_refused_by_name(keys: dict[str, Any]) -> None:
    probe = Probe(kind="video", width=64, height=64, num_frames=10, fps=10.0)
    with pytest.raises(InvalidValueError) as caught:
        DEFAULTS.plan(probe, MediaOptions(**keys), "messages[3].content[1]")
    (part, key) = str(caught.value.param).rsplit(".", 1)
    assert part == "messages[3].content[1]"
    assert key in keys and key in caught.value.message


@pytest.mark.parametrize(
    "keys", [{"nframes": 4}, {"max_frames": 1}, {"video_start": 3.0}, {"video_end": 0.0}], ids=str
)
def test_a_clip_of_one_frame_refuses_what_any_clip_of_a_pair_refuses(keys: dict[str, Any]) -> None:
    probe = Probe(kind="video", width=64, height=64, num_frames=1, fps=10.0)
    assert DEFAULTS.plan(probe, MediaOptions(nframes=2), "p").frame_indices == (0, 0)
    with pytest.raises(InvalidValueError):
        DEFAULTS.plan(probe, MediaOptions(**keys), "p")


@pytest.mark.parametrize("detail", [None, "low"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_min_pixels_of_a_part_count_more_than_the_checkpoints_largest(
    kind: Any, detail: Any
) -> None:
    small = replace(DEFAULTS, picture=PixelRange(least=3136, most=50_000))
    probe = Probe(kind=kind, width=200, height=150, num_frames=4, fps=4.0)
    plan = small.plan(probe, MediaOptions(min_pixels=400_000, detail=detail), "p")
    assert plan.width * plan.height >= 400_000


def test_min_pixels_just_below_the_largest_picture_are_reached() -> None:
    policy = replace(DEFAULTS, factor=32, max_item_tokens=42)
    probe = Probe(kind="image", width=200, height=150, num_frames=1, fps=0.0)
    plan = policy.plan(probe, MediaOptions(min_pixels=40_000), "p")
    assert (plan.width, plan.height) == (224, 192)


def test_a_clip_with_an_odd_number_of_frames_is_told_the_even_number_to_ask_for() -> None:
    """Qwen rounds `nframes` to pairs: three of five frames would be four, and of three too many."""
    probe = Probe(kind="video", width=64, height=64, num_frames=3, fps=3.0)
    with pytest.raises(InvalidValueError, match="even number of frames, 2 to 2: the clip has 3"):
        DEFAULTS.plan(probe, MediaOptions(nframes=3), "p")
    assert len(DEFAULTS.plan(probe, MediaOptions(nframes=2), "p").frame_indices) == 2


def test_min_pixels_come_before_total_pixels_as_in_qwens_recipe() -> None:
    probe = Probe(kind="video", width=640, height=480, num_frames=8, fps=8.0)
    asked = MediaOptions(nframes=4, min_pixels=100_352, total_pixels=4 * 784)
    plan = DEFAULTS.plan(probe, asked, "p")
    assert (plan.height, plan.width) == smart_resize(480, 640, 28, 100_352, int(1.05 * 100_352))
