"""How each kind of thing and each background is drawn: flat illustrations, PIL and numpy only.

Called by ``scenes.py``. A drawing function gets a ``Pen`` whose unit square is the thing's box, so
that it knows nothing of pixels, places or pictures. ``KINDS`` maps a kind to its function.
"""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """The colour between ``a`` and ``b``, with ``share`` of ``b``."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


WHITE: Rgb = (255, 255, 255)
INK: Rgb = (38, 34, 44)


class Pen:
    """Draws in a thing's own coordinates: x and y from -0.5 to 0.5, mirrored when ``flip``."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, x: float, y: float, size: float, flip: bool, fill: Rgb
    ) -> None:
        self.draw = draw
        self.x, self.y, self.size = x, y, size
        self.sign = -1.0 if flip else 1.0
        self.fill = fill
        dark = sum(fill) < 200
        self.edge = mix(fill, WHITE, 0.38) if dark else mix(fill, INK, 0.55)
        self.light = mix(fill, WHITE, 0.3 if dark else 0.5)
        self.shade = mix(fill, WHITE, 0.14) if dark else mix(fill, INK, 0.18)
        self.line = max(1, round(size * 0.035))

    def at(self, x: float, y: float) -> Point:
        return (self.x + self.sign * x * self.size, self.y + y * self.size)

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: Rgb | None = None, edge: bool = True
    ) -> None:
        cx, cy = self.at(x, y)
        rx, ry = rx * self.size, ry * self.size
        box = (cx - rx, cy - ry, cx + rx, cy + ry)
        ink = self.edge if edge else None
        self.draw.ellipse(box, fill or self.fill, ink, self.line if edge else 0)

    def shape(self, points: list[Point], fill: Rgb | None = None, edge: bool = True) -> None:
        spots = [self.at(x, y) for x, y in points]
        self.draw.polygon(spots, fill or self.fill)
        if edge:
            self.draw.line([*spots, spots[0], spots[1]], self.edge, self.line, joint="curve")

    def stroke(self, points: list[Point], width: float, fill: Rgb | None = None) -> None:
        spots = [self.at(x, y) for x, y in points]
        self.draw.line(spots, fill or self.edge, max(1, round(width * self.size)), joint="curve")


def sheep(pen: Pen) -> None:
    face = (70, 62, 66) if sum(pen.fill) > 220 else (214, 190, 170)
    for x in (-0.2, -0.08, 0.1, 0.22):
        pen.stroke([(x, 0.15), (x, 0.42)], 0.07, face)
    puffs = [(-0.3, 0.0), (-0.18, -0.17), (0.02, -0.21), (0.2, -0.13), (0.28, 0.04)]
    puffs += [(0.14, 0.17), (-0.04, 0.2), (-0.22, 0.16)]
    for x, y in puffs:
        pen.oval(x, y, 0.14, 0.13)
    pen.oval(0, 0, 0.3, 0.2, edge=False)
    pen.oval(-0.1, -0.1, 0.08, 0.05, pen.light, edge=False)
    pen.oval(0.25, -0.2, 0.06, 0.09, face, edge=False)
    pen.oval(0.35, -0.13, 0.12, 0.14, face, edge=False)
    pen.oval(0.38, -0.16, 0.032, 0.032, WHITE, edge=False)
    pen.oval(0.39, -0.16, 0.016, 0.016, INK, edge=False)


def ball(pen: Pen) -> None:
    pen.oval(0, 0, 0.42, 0.42)
    pen.oval(0, 0, 0.4, 0.13, pen.shade, edge=False)
    pen.stroke([(-0.39, -0.02), (-0.2, 0.09), (0, 0.12), (0.2, 0.09), (0.39, -0.02)], 0.04)
    pen.oval(-0.15, -0.2, 0.11, 0.08, pen.light, edge=False)


def car(pen: Pen) -> None:
    pen.shape([(-0.26, -0.04), (-0.16, -0.26), (0.13, -0.26), (0.26, -0.04)])
    pen.shape([(-0.18, -0.05), (-0.11, -0.2), (-0.02, -0.2), (-0.02, -0.05)], (214, 234, 244))
    pen.shape([(0.03, -0.05), (0.03, -0.2), (0.1, -0.2), (0.18, -0.05)], (214, 234, 244))
    body = [(-0.45, 0.15), (-0.45, 0.0), (-0.38, -0.05), (0.36, -0.05), (0.45, 0.03), (0.45, 0.15)]
    pen.shape(body)
    pen.oval(0.4, 0.03, 0.035, 0.035, (255, 240, 170), edge=False)
    for x in (-0.25, 0.25):
        pen.oval(x, 0.16, 0.12, 0.12, (52, 50, 58), edge=False)
        pen.oval(x, 0.16, 0.055, 0.055, (190, 190, 196), edge=False)


def tree(pen: Pen) -> None:
    pen.shape([(-0.07, 0.46), (-0.05, 0.1), (0.05, 0.1), (0.07, 0.46)], (130, 92, 62))
    for x, y, r in ((-0.19, 0.02, 0.19), (0.19, 0.02, 0.19), (0.0, -0.22, 0.24)):
        pen.oval(x, y, r, r * 0.95)
    pen.oval(0, -0.04, 0.21, 0.18, edge=False)
    pen.oval(-0.08, -0.27, 0.08, 0.06, pen.light, edge=False)
    pen.oval(0.17, 0.06, 0.07, 0.05, pen.shade, edge=False)


def apple(pen: Pen) -> None:
    pen.stroke([(0.0, -0.18), (0.03, -0.42)], 0.06, (120, 84, 58))
    pen.shape([(0.04, -0.28), (0.14, -0.42), (0.3, -0.4), (0.2, -0.27)], (112, 176, 84), edge=False)
    pen.oval(-0.15, 0.06, 0.25, 0.31)
    pen.oval(0.15, 0.06, 0.25, 0.31)
    pen.oval(0, 0.08, 0.18, 0.25, edge=False)
    pen.oval(-0.2, -0.05, 0.07, 0.1, pen.light, edge=False)


def fish(pen: Pen) -> None:
    pen.shape([(-0.2, 0.0), (-0.46, -0.22), (-0.4, 0.0), (-0.46, 0.22)], pen.shade)
    pen.shape([(-0.05, -0.2), (0.05, -0.36), (0.17, -0.18)], pen.shade)
    pen.oval(0.08, 0, 0.36, 0.24)
    pen.oval(0.02, 0.09, 0.2, 0.09, pen.light, edge=False)
    pen.stroke([(0.2, -0.18), (0.15, 0.0), (0.2, 0.18)], 0.035)
    pen.oval(0.3, -0.06, 0.055, 0.055, WHITE, edge=False)
    pen.oval(0.31, -0.06, 0.028, 0.028, INK, edge=False)


def star(pen: Pen) -> None:
    tips: list[Point] = []
    for k in range(10):
        radius = 0.47 if k % 2 == 0 else 0.22
        angle = pi * k / 5 - pi / 2
        tips.append((radius * cos(angle), radius * sin(angle) + 0.03))
    pen.shape(tips)
    pen.shape([(x * 0.5, (y - 0.03) * 0.5 + 0.02) for x, y in tips], pen.light, edge=False)


def house(pen: Pen) -> None:
    wall = mix(pen.fill, WHITE, 0.15) if sum(pen.fill) < 200 else pen.fill
    pen.shape([(0.18, -0.2), (0.18, -0.42), (0.28, -0.42), (0.28, -0.12)], (150, 132, 124))
    pen.shape([(-0.34, 0.44), (-0.34, -0.06), (0.34, -0.06), (0.34, 0.44)], wall)
    pen.shape([(-0.45, -0.03), (0, -0.42), (0.45, -0.03)], pen.shade)
    pen.shape([(-0.08, 0.44), (-0.08, 0.14), (0.1, 0.14), (0.1, 0.44)], (128, 92, 66))
    pen.shape([(-0.27, 0.2), (-0.27, 0.04), (-0.14, 0.04), (-0.14, 0.2)], (222, 238, 246))
    pen.shape([(0.16, 0.2), (0.16, 0.04), (0.28, 0.04), (0.28, 0.2)], (222, 238, 246))


def flower(pen: Pen) -> None:
    pen.stroke([(0, 0.0), (0.02, 0.25), (0, 0.47)], 0.055, (92, 150, 78))
    pen.shape([(0.01, 0.36), (0.14, 0.2), (0.26, 0.22), (0.16, 0.34)], (112, 172, 92), edge=False)
    for k in range(6):
        angle = pi * k / 3
        pen.oval(0.2 * cos(angle), -0.14 + 0.2 * sin(angle), 0.135, 0.135)
    core = (250, 214, 92) if pen.fill[2] > 120 or pen.fill[0] < 200 else (126, 84, 52)
    pen.oval(0, -0.14, 0.12, 0.12, core)


def boat(pen: Pen) -> None:
    pen.stroke([(-0.02, 0.2), (-0.02, -0.44)], 0.045, (124, 90, 64))
    pen.shape([(0.03, 0.12), (0.03, -0.4), (0.36, 0.12)], pen.light)
    pen.shape([(-0.07, 0.12), (-0.07, -0.28), (-0.32, 0.12)], pen.light)
    pen.shape([(-0.46, 0.18), (0.46, 0.18), (0.3, 0.42), (-0.3, 0.42)])
    pen.stroke([(-0.4, 0.26), (0.4, 0.26)], 0.04, pen.edge)


KINDS: dict[str, Callable[[Pen], None]] = {
    "sheep": sheep,
    "ball": ball,
    "car": car,
    "tree": tree,
    "apple": apple,
    "fish": fish,
    "star": star,
    "house": house,
    "flower": flower,
    "boat": boat,
}


def plain(size: tuple[int, int], top: Rgb, bottom: Rgb) -> Image.Image:
    """A sheet that fades from ``top`` to ``bottom``."""
    if top == bottom:
        return Image.new("RGB", size, top)
    strip = np.linspace(top, bottom, size[1]).astype(np.uint8)
    return Image.fromarray(np.repeat(strip[:, None], size[0], axis=1))


def meadow(size: tuple[int, int], sky: Rgb, grass: Rgb, horizon: float) -> Image.Image:
    """A sky over two soft hills; the horizon lies at that share of the height."""
    width, height = size
    sheet = plain(size, sky, mix(sky, WHITE, 0.6))
    draw = ImageDraw.Draw(sheet)
    top = horizon * height
    far = mix(grass, sky, 0.35)
    draw.ellipse((-0.6 * width, top, 0.9 * width, height * 2.2), far)
    draw.ellipse(
        (0.1 * width, top + 0.04 * height, 1.8 * width, height * 2.3), mix(far, grass, 0.5)
    )
    draw.ellipse((-0.5 * width, top + 0.16 * height, 1.3 * width, height * 2.4), grass)
    return sheet
