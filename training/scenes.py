"""Scenes and clips: what is where, and the pixels of it. PIL and numpy only.

``make_scene`` and ``make_clip`` draw the contents from a random generator, ``draw_scene`` and
``draw_frame`` make pictures of them. Called by ``look.py`` and ``data.py`` (training),
``evaluate.py`` (fresh scenes for a running server) and ``samples.py``. The words for all this are
in ``talk.py``. Some pairs of kind and colour, and the ring as a layout, never occur in training.
"""

from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

from training.drawing import INK, KINDS, WHITE, Pen, Rgb, meadow, mix, plain
from training.targets import Mark, moving

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

GRAIN = np.random.default_rng(0).standard_normal(2**20, np.float32)  # a camera's noise


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

    def marks(self) -> list[Mark]:
        """What is to be seen, for ``targets.paint``."""
        short = min(self.width, self.height)
        wide, high = short / self.width, short / self.height
        return [
            Mark(
                KIND_NAMES.index(thing.kind),
                COLOUR_NAMES.index(thing.colour),
                thing.x * wide,
                thing.y * high,
                thing.size * wide * 0.9,
                thing.size * high * 0.9,
                min(self.count(thing.kind), 9),
            )
            for thing in self.things
        ]


@dataclass(frozen=True)
class Move:
    """One thing's way through a part of a clip; ``step`` is its whole way, as in ``Thing``."""

    index: int
    direction: str
    step: tuple[float, float]


@dataclass(frozen=True)
class Clip:
    """A scene in which one thing moves, or first one and then another."""

    scene: Scene
    moves: tuple[Move, ...]
    fps: float
    frames: int

    def mover(self, phase: int = 0) -> Thing:
        return self.scene.things[self.moves[phase].index]

    def phase(self, share: float) -> int:
        """Which of the moves happens after that share of the clip."""
        return min(int(share * len(self.moves)), len(self.moves) - 1)

    def at(self, share: float) -> Scene:
        """The scene after that share of the clip."""
        things = list(self.scene.things)
        for k, move in enumerate(self.moves):
            part = min(max(share * len(self.moves) - k, 0.0), 1.0)
            thing = things[move.index]
            x, y = thing.x + move.step[0] * part, thing.y + move.step[1] * part
            things[move.index] = replace(thing, x=x, y=y)
        return replace(self.scene, things=tuple(things))

    def marks(self, first: float, second: float) -> list[Mark]:
        """What two neighbouring frames show, and what moves between them."""
        middle = (first + second) / 2
        move = self.moves[self.phase(middle)]
        return moving(
            self.at(middle).marks(), move.index, DIRECTION_NAMES.index(move.direction) + 1
        )


def held_out(kind: str, colour: str) -> bool:
    """A pair that training never shows."""
    return (KIND_NAMES.index(kind) * 3 + COLOUR_NAMES.index(colour)) % 8 == 0


def draw_colour(rng: np.random.Generator, kind: str, fresh: bool) -> str:
    """A colour for a kind of thing; a held-out pair often where ``fresh`` and else never."""
    wanted = fresh and rng.random() < 0.35
    fitting = [name for name in COLOUR_NAMES if held_out(kind, name) == wanted]
    return fitting[rng.integers(len(fitting))]


def make_backdrop(rng: np.random.Generator, sheets: bool = False) -> Backdrop:
    """A background; ``sheets`` leaves the meadows out."""
    style = ("plain", "fade", "meadow", "meadow")[rng.integers(2 if sheets else 4)]
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


def ring(
    rng: np.random.Generator, sizes: list[float], wide: float, high: float
) -> list[tuple[float, float]] | None:
    """Centres on an oval around the middle, or None where they do not fit."""
    angles = float(rng.uniform(0, 2 * np.pi)) + np.arange(len(sizes)) * 2 * np.pi / len(sizes)
    x = wide / 2 + np.cos(angles) * (wide - max(sizes)) / 2
    y = high / 2 + np.sin(angles) * (high - max(sizes)) / 2
    apart = np.maximum(np.abs(x[:, None] - x), np.abs(y[:, None] - y)) + np.eye(len(sizes))
    spots = list(zip(x.tolist(), y.tolist(), strict=True))
    return [spots[k] for k in rng.permutation(len(spots))] if apart.min() > max(sizes) else None


def make_scene(
    rng: np.random.Generator,
    counts: list[int],
    width: int,
    height: int,
    kinds: tuple[str, ...] = (),
    fresh: bool = False,
) -> Scene:
    """A scene with ``counts[i]`` things of each of ``len(counts)`` kinds (drawn, unless named);
    ``fresh`` scenes may also show what training never does."""
    names = kinds or tuple(rng.choice(KIND_NAMES, len(counts), replace=False))
    short = min(width, height)
    wide, high = width / short, height / short
    total = sum(counts)
    top = min(0.42, 0.72 * (wide * high / max(total, 1)) ** 0.5)
    while True:
        base = float(rng.uniform(max(0.15, top * 0.6), max(0.15, top)))
        sizes = [base * float(rng.uniform(0.88, 1.12)) for _ in range(total)]
        layout = ring if fresh and total > 2 and rng.random() < 0.25 else place
        spots = layout(rng, sizes, wide, high)
        if spots is not None:
            break
        top *= 0.95
    things: list[Thing] = []
    for name, count in zip(names, counts, strict=True):
        colour = draw_colour(rng, str(name), fresh)
        fill = jitter(rng, colour)
        for _ in range(count):
            (x, y), size = spots[len(things)], sizes[len(things)]
            things.append(Thing(str(name), colour, fill, x, y, size, bool(rng.integers(2))))
    return Scene(width, height, make_backdrop(rng), tuple(things))


def make_move(
    rng: np.random.Generator, scene: Scene, index: int, direction: str
) -> tuple[Thing, Move]:
    """The thing at its start, and a straight way in that direction."""
    dx, dy = DIRECTIONS[direction]
    short = min(scene.width, scene.height)
    wide, high = scene.width / short, scene.height / short
    thing = scene.things[index]
    span = (wide if dx else high) - thing.size
    way = span * float(rng.uniform(0.45, 1.0))
    start = float(rng.uniform(0, span - way)) + thing.size / 2
    if dx + dy < 0:
        start = (wide if dx else high) - start
    moved = replace(thing, x=start) if dx else replace(thing, y=start)
    return moved, Move(index, direction, (dx * way, dy * way))


def make_clip(
    rng: np.random.Generator, width: int, height: int, others: int, phases: int = 1
) -> Clip:
    """One thing crosses the picture, and in a second phase another does; the others stand still."""
    scene = make_scene(rng, [1] * (phases + others), width, height)
    things = [replace(thing, size=min(thing.size, 0.36)) for thing in scene.things]
    moves = []
    for index in range(phases):
        direction = str(rng.choice(DIRECTION_NAMES))
        scene = replace(scene, things=tuple(things))
        things[index], move = make_move(rng, scene, index, direction)
        moves.append(move)
    fps = float(rng.choice([6, 8, 10, 12, 15, 24, 25, 30]))
    least, most = (1.6, 4.2) if phases == 1 else (3.0, 4.4)
    frames = round(float(rng.uniform(least, most)) * fps)
    return Clip(replace(scene, things=tuple(things)), tuple(moves), fps, frames)


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
        pixels = np.array(picture, np.float32)
        start = int(rng.integers(len(GRAIN) - pixels.size))
        noise = GRAIN[start : start + pixels.size].reshape(pixels.shape)
        pixels += noise * np.float32(rng.uniform(1, 7))
        picture = Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
    if rng.random() < 0.5:
        file = BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(55, 96)))
        picture = Image.open(file).convert("RGB")
    return picture
