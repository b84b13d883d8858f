"""What training pictures show, drawn at random: counts, sizes, scenes, signs, and odd pictures.

Called by ``look.py`` and ``data.py``; numpy and PIL only.
"""

import numpy as np
from PIL import Image

from training.scenes import Scene, draw_scene, make_scene
from training.signs import Sign, draw_sign, make_page, make_row, make_word, room

Rng = np.random.Generator


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
    """Soft blotches under noise: a picture of nothing that the model knows."""
    pixels = np.zeros((height, width, 3))
    for cells in (3, 7, 16, 40)[: int(rng.integers(2, 5))]:
        coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer, np.float64) / cells**0.5
    pixels += rng.normal(0, float(rng.uniform(0, 20)), pixels.shape)
    low, high = pixels.min(), pixels.max()
    shades = (pixels - low) / max(high - low, 1) * float(rng.uniform(120, 255))
    return Image.fromarray(shades.astype(np.uint8))
