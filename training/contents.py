"""What training pictures show, drawn at random: counts, sizes, scenes, signs, and odd pictures.

Called by ``look.py`` and ``data.py``; numpy and PIL only.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from training.drawing import mix
from training.scenes import Scene, draw_scene, make_scene
from training.signs import Sign, draw_sign, make_page, make_row, make_word, room

Rng = np.random.Generator
FloatArray = np.ndarray[Any, np.dtype[np.float32]]


def draw_counts(rng: Rng, hard: bool) -> list[int]:
    """How many of each kind, thirteen at most together."""
    groups = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    counts = [int(rng.integers(1, 5)) for _ in range(groups)]
    if hard and rng.random() < 0.7:
        counts[0] = int(rng.integers(2, 10))
        counts[1:] = [int(rng.integers(1, min(5, 1 + (13 - counts[0]) // 2))) for _ in counts[1:]]
    return counts


def draw_size(rng: Rng, low: float, high: float, longest: float = 2.2) -> tuple[int, int]:
    """Width and height, whose mean lies between ``low`` and ``high``."""
    root = float(np.exp(rng.uniform(-1, 1) * np.log(longest) / 2))
    mean = float(rng.uniform(low, high))
    return round(mean * root), round(mean / root)


def draw_content(rng: Rng, width: int, height: int, hard: bool) -> Scene | Sign:
    """A scene, a row with a box, a word or a page."""
    dice = rng.random()
    if dice < 0.66 or room(width, height) < 3:
        return make_scene(rng, draw_counts(rng, hard), width, height)
    if dice < 0.8:
        return make_row(rng, width, height)
    return (make_word if dice < 0.87 else make_page)(rng, width, height)


def picture_of(content: Scene | Sign, fine: int = 2) -> Image.Image:
    return draw_scene(content, fine) if isinstance(content, Scene) else draw_sign(content, fine)


def odd_picture(rng: Rng, width: int, height: int) -> Image.Image:
    """A picture of nothing that the model knows: blotches, shapes and strokes of any colour, more
    or less blurred, in uneven light and under noise, as photographs are."""
    pixels = np.zeros((height, width, 3), np.float32)
    for cells in (2, 5, 12, 40)[: int(rng.integers(1, 5))]:
        pixels += blotches(rng, cells, width, height) / cells**0.5
    pixels -= pixels.min()
    pixels *= float(rng.uniform(90, 255)) / max(float(pixels.max()), 1)
    sheet = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(sheet)
    muted, reach = float(rng.random()), float(rng.uniform(0.05, 0.7)) * max(width, height)
    for _ in range(int(rng.integers(0, 30))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        spots = [(x + dx, y + dy) for dx, dy in rng.uniform(-reach, reach, (4, 2))]
        ink = mix(tuple(rng.integers(0, 256, 3).tolist()), (118, 108, 96), muted)
        shape = rng.integers(3)
        if shape == 0:
            draw.polygon(spots, ink)
        elif shape == 1:
            draw.ellipse((x, y, x + reach * rng.random(), y + reach * rng.random()), ink)
        else:
            draw.line(spots, ink, int(rng.integers(1, 6)), joint="curve")
    if rng.random() < 0.7:
        sheet = sheet.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 3))))
    light = blotches(rng, 3, width, height) / 255 * float(rng.uniform(0, 0.8))
    shaded = np.asarray(sheet) * (1 - light)
    grey = shaded.mean(2, keepdims=True)
    shaded = grey + (shaded - grey) * float(rng.uniform(0, 1))
    shaded += rng.standard_normal(shaded.shape, np.float32) * float(rng.uniform(0, 14))
    return Image.fromarray(np.clip(shaded, 0, 255).astype(np.uint8))


def blotches(rng: Rng, cells: int, width: int, height: int) -> FloatArray:
    """Soft random colours, 0 to 255, so many across and down."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
