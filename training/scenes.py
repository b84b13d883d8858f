"""Scenes and clips: what is where, and the pixels of it. PIL and numpy only.

``make_scene`` and ``make_clip`` draw the contents from a random generator, ``draw_scene`` and
``draw_frame`` make pictures of them. Called by ``data.py`` (training), ``evaluate.py`` (fresh
scenes for a running server) and ``samples.py``. The words for all this are in ``talk.py``.
"""

from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

from training.drawing import INK, KINDS, WHITE, Pen, Rgb, meadow, mix, plain

KIND_NAMES = tuple(KINDS)
COLOURS: dict[str, Rgb] = {
    "red": (222, 52, 50),
    "orange": (244, 142, 38),
    "yellow": (250, 216, 54),
    "green": (62, 164, 78),
    "blue": (50, 104, 212),
    "purple": (146, 74, 184),
    "white": (250, 250, 250),
    "black": (46, 44, 50),
}
COLOUR_NAMES = tuple(COLOURS)
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DIRECTION_NAMES = tuple(DIRECTIONS)
SKIES: tuple[Rgb, ...] = ((176, 214, 240), (198, 226, 246), (248, 222, 204), (204, 216, 236))
GRASSES: tuple[Rgb, ...] = ((186, 216, 150), (204, 222, 160), (226, 212, 168), (176, 208, 172))
SHEETS: tuple[Rgb, ...] = (
    (238, 232, 220),
    (220, 232, 238),
    (230, 238, 222),
    (240, 226, 230),
    (226, 224, 240),
    (214, 214, 214),
)


@dataclass(frozen=True)
class Thing:
    """One drawn thing; centre and size are shares of the picture's shorter side."""

    kind: str
    colour: str
    fill: Rgb
    x: float
    y: float
    size: float
    flip: bool


@dataclass(frozen=True)
class Backdrop:
    """A background: its style and colours."""

    style: str
    first: Rgb
    second: Rgb
    horizon: float


@dataclass(frozen=True)
class Scene:
    """A picture's contents: every kind in it has one colour."""

    width: int
    height: int
    backdrop: Backdrop
    things: tuple[Thing, ...]

    def count(self, kind: str) -> int:
        return sum(thing.kind == kind for thing in self.things)

    def groups(self) -> list[tuple[str, str, int]]:
        """(kind, colour, count) of what is there, in the order of ``KIND_NAMES``."""
        colours = {thing.kind: thing.colour for thing in self.things}
        return [(kind, colours[kind], self.count(kind)) for kind in KIND_NAMES if kind in colours]


@dataclass(frozen=True)
class Clip:
    """A scene in which the first thing moves; ``step`` is its whole way, as in ``Thing``."""

    scene: Scene
    direction: str
    step: tuple[float, float]
    fps: float
    frames: int

    @property
    def mover(self) -> Thing:
        return self.scene.things[0]

    def at(self, share: float) -> Scene:
        """The scene after that share of the clip."""
        dx, dy = self.step[0] * share, self.step[1] * share
        moved = replace(self.mover, x=self.mover.x + dx, y=self.mover.y + dy)
        return replace(self.scene, things=(moved, *self.scene.things[1:]))


def make_backdrop(rng: np.random.Generator) -> Backdrop:
    style = ("plain", "fade", "meadow", "meadow")[rng.integers(4)]
    if style == "meadow":
        first, second = SKIES[rng.integers(len(SKIES))], GRASSES[rng.integers(len(GRASSES))]
    else:
        first = SHEETS[rng.integers(len(SHEETS))]
        second = first if style == "plain" else SKIES[rng.integers(len(SKIES))]
    drift = float(rng.uniform(-0.12, 0.12))
    target = WHITE if drift > 0 else INK
    first, second = mix(first, target, abs(drift)), mix(second, target, abs(drift))
    return Backdrop(style, first, second, float(rng.uniform(0.2, 0.7)))


def jitter(rng: np.random.Generator, colour: str) -> Rgb:
    """One shade of a named colour."""
    spread = 7 if colour in ("white", "black", "orange", "yellow") else 18
    r, g, b = (int(np.clip(c + rng.integers(-spread, spread + 1), 0, 255)) for c in COLOURS[colour])
    return (r, g, b)


def place(
    rng: np.random.Generator, sizes: list[float], wide: float, high: float
) -> list[tuple[float, float]] | None:
    """Centres for boxes of these sizes that hardly touch, or None where they do not fit."""
    spots: list[tuple[float, float]] = []
    for i, size in enumerate(sizes):
        for _ in range(60):
            x = float(rng.uniform(size * 0.5, wide - size * 0.5))
            y = float(rng.uniform(size * 0.5, high - size * 0.5))
            room = [(size + sizes[j]) * 0.48 for j in range(i)]
            if all(
                max(abs(x - px), abs(y - py)) > gap
                for (px, py), gap in zip(spots, room, strict=True)
            ):
                spots.append((x, y))
                break
        else:
            return None
    return spots


def make_scene(
    rng: np.random.Generator,
    counts: list[int],
    width: int,
    height: int,
    kinds: tuple[str, ...] = (),
) -> Scene:
    """A scene with ``counts[i]`` things of each of ``len(counts)`` kinds (drawn, unless named)."""
    names = kinds or tuple(rng.choice(KIND_NAMES, len(counts), replace=False))
    short = min(width, height)
    wide, high = width / short, height / short
    total = sum(counts)
    top = min(0.42, 0.72 * (wide * high / max(total, 1)) ** 0.5)
    while True:
        base = float(rng.uniform(min(0.24, top), top))
        sizes = [base * float(rng.uniform(0.88, 1.12)) for _ in range(total)]
        spots = place(rng, sizes, wide, high)
        if spots is not None:
            break
        top = max(0.13, top * 0.93)
    things: list[Thing] = []
    for name, count in zip(names, counts, strict=True):
        colour = str(rng.choice(COLOUR_NAMES))
        fill = jitter(rng, colour)
        for _ in range(count):
            (x, y), size = spots[len(things)], sizes[len(things)]
            things.append(Thing(str(name), colour, fill, x, y, size, bool(rng.integers(2))))
    return Scene(width, height, make_backdrop(rng), tuple(things))


def make_clip(rng: np.random.Generator, width: int, height: int, others: int) -> Clip:
    """One thing crosses the picture, ``others`` things of other kinds stand still."""
    scene = make_scene(rng, [1] * (1 + others), width, height)
    direction = str(rng.choice(DIRECTION_NAMES))
    dx, dy = DIRECTIONS[direction]
    short = min(width, height)
    wide, high = width / short, height / short
    mover = replace(scene.things[0], size=min(scene.things[0].size, 0.36))
    span = (wide if dx else high) - mover.size
    way = span * float(rng.uniform(0.45, 1.0))
    start = float(rng.uniform(0, span - way)) + mover.size / 2
    if dx + dy < 0:
        start = (wide if dx else high) - start
    moved = replace(mover, x=start) if dx else replace(mover, y=start)
    fps = float(rng.choice([6, 8, 10, 12, 15, 24, 25, 30]))
    frames = round(float(rng.uniform(1.6, 4.2)) * fps)
    scene = replace(scene, things=(moved, *scene.things[1:]))
    return Clip(scene, direction, (dx * way, dy * way), fps, frames)


def draw_scene(scene: Scene, fine: int = 3) -> Image.Image:
    """The picture, drawn ``fine`` times too large and then shrunk."""
    size = (scene.width * fine, scene.height * fine)
    back = scene.backdrop
    if back.style == "meadow":
        sheet = meadow(size, back.first, back.second, back.horizon)
    else:
        sheet = plain(size, back.first, back.second)
    draw = ImageDraw.Draw(sheet)
    unit = min(size)
    for thing in sorted(scene.things, key=lambda item: item.y):
        pen = Pen(draw, thing.x * unit, thing.y * unit, thing.size * unit, thing.flip, thing.fill)
        KINDS[thing.kind](pen)
    return sheet.reduce(fine)


def draw_frame(clip: Clip, index: int, fine: int = 3) -> Image.Image:
    return draw_scene(clip.at(index / max(1, clip.frames - 1)), fine)


def roughen(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """What cameras and files do to a picture: noise and JPEG blocks, each half of the time."""
    if rng.random() < 0.5:
        pixels = np.asarray(picture, np.int16)
        level = float(rng.uniform(1, 7))
        noise = rng.normal(0, level, pixels.shape).astype(np.int16)
        picture = Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        file = BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(55, 96)))
        picture = Image.open(file).convert("RGB")
    return picture
