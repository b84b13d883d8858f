"""Signs: a line of large characters, read aloud, or a row of digits of which one is boxed.

``make_word`` and ``make_row`` draw the contents from a random generator, ``draw_sign`` makes the
picture. Called by ``contents.py``, ``data.py`` and ``evaluate.py``; PIL and numpy only (more fonts
where matplotlib is installed).
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.drawing import INK, WHITE, Rgb, mix, plain
from training.scenes import COLOUR_NAMES, Backdrop, jitter, make_backdrop
from training.targets import DIGITS, IGNORE, LABELS, LETTERS, Mark

Rng = np.random.Generator
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSansMono-Bold")
SEEN_AREA = 196 * 196  # pixels of a picture as the model sees it, about
PITCH = 36  # least distance of characters there: more than a merged token is wide
DARK = ("red", "blue", "purple", "green", "black")


@dataclass(frozen=True)
class Sign:
    """A line of characters; places and sizes are shares of the picture's width."""

    width: int
    height: int
    backdrop: Backdrop
    text: str
    box: int  # the boxed place, -1 without one
    hidden: bool  # the box is empty
    face: str
    ink: Rgb
    frame: Rgb
    left: float  # middle of the first character
    middle: float
    pitch: float
    size: float

    def marks(self) -> list[Mark]:
        """What is to be seen, for ``targets.paint``."""
        marks = []
        tall = self.width / self.height
        for character, k, x, y in self.places():
            label, own, wide = LABELS.index(character), k, self.size * 0.75
            if k == self.box:
                label, own, wide = LABELS.index("box"), DIGITS.index(character), self.pitch * 0.95
            marks.append(Mark(label, IGNORE, x, y * tall, wide, wide * tall, own))
        return marks

    def places(self) -> list[tuple[str, int, float, float]]:
        """Every character with its place in its line and its middle."""
        return [
            (character, k, self.left + k * self.pitch, self.middle + row * self.pitch)
            for row, line in enumerate(self.text.split("\n"))
            for k, character in enumerate(line)
        ]


@cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    found = find_spec("matplotlib")
    if face and found and found.origin:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{face}.ttf"
        return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def sign_size(rng: Rng, length: int) -> tuple[int, int]:
    """Width and height of a picture wide enough for so many characters."""
    least = max(0.7, 1.1 * (length * PITCH) ** 2 / SEEN_AREA)
    aspect = least * float(rng.uniform(1.0, 1.5))
    area = float(rng.uniform(130, 320)) ** 2
    return round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)


def room(width: int, height: int) -> int:
    """How many characters a picture of that shape holds."""
    return int((SEEN_AREA * width / height) ** 0.5 / PITCH * 0.98)


def make_sign(rng: Rng, text: str, width: int, height: int, box: int, hidden: bool) -> Sign:
    least = PITCH / (SEEN_AREA * width / height) ** 0.5
    lines = text.split("\n")
    longest = max(len(line) for line in lines)
    high = height / width
    most = min(0.97 / longest, 0.95 * high / len(lines))
    pitch = float(rng.uniform(min(least, most), min(most, 1.7 * least)))
    size = pitch * float(rng.uniform(0.72, 1.0))
    left = pitch / 2 + (1 - pitch * longest) * float(rng.uniform(0.02, 0.98))
    middle = pitch * 0.52 + (high - pitch * (len(lines) + 0.04)) * float(rng.random())
    backdrop = make_backdrop(rng, sheets=True)
    ink, frame = (jitter(rng, DARK[rng.integers(len(DARK))]) for _ in range(2))
    ink = mix(ink, INK, float(rng.uniform(0.1, 0.9)))
    face = ("", *FACES)[rng.integers(len(FACES) + 1)]
    return Sign(
        width, height, backdrop, text, box, hidden, face, ink, frame, left, middle, pitch, size
    )


def make_word(rng: Rng, width: int, height: int, text: str = "") -> Sign:
    """A line of letters or of digits, drawn unless named."""
    most = min(7, room(width, height))
    text = text or draw_line(rng, int(rng.integers(min(2, most), most + 1)))
    return make_sign(rng, text, width, height, -1, False)


def draw_line(rng: Rng, length: int) -> str:
    letters = LETTERS if rng.random() < 0.65 else DIGITS
    return "".join(letters[k] for k in rng.integers(0, len(letters), length))


def make_page(rng: Rng, width: int, height: int) -> Sign:
    """Several lines, which teach the eyes many characters at a time."""
    down, across = min(5, room(height, width)), min(7, room(width, height))
    lines = [draw_line(rng, int(rng.integers(2, across + 1))) for _ in range(down)]
    return make_sign(rng, "\n".join(lines), width, height, -1, False)


def make_row(rng: Rng, width: int, height: int, length: int = 0) -> Sign:
    """Digits that rise or fall by one or rise by two; one place is boxed, and mostly empty."""
    length = length or int(rng.integers(3, max(3, min(6, room(width, height))) + 1))
    step = (1, 1, -1, 2)[rng.integers(4)]
    if abs(step) * (length - 1) > 9:
        step = 1
    first = int(rng.integers(0, 10 - abs(step) * (length - 1)))
    digits = [first + abs(step) * k for k in range(length)][:: 1 if step > 0 else -1]
    text = "".join(str(digit) for digit in digits)
    box, hidden = int(rng.integers(length)), bool(rng.random() < 0.7)
    return make_sign(rng, text, width, height, box, hidden)


def draw_sign(sign: Sign, fine: int = 2) -> Image.Image:
    """The picture, drawn ``fine`` times too large and then shrunk."""
    unit = sign.width * fine
    back = sign.backdrop
    light = [mix(colour, WHITE, 0.35) for colour in (back.first, back.second)]
    sheet = plain((unit, sign.height * fine), *light)
    draw = ImageDraw.Draw(sheet)
    letter = font(sign.face, max(8, round(sign.size * unit)))
    for character, k, across, down in sign.places():
        x, y = across * unit, down * unit
        if k == sign.box:
            half = sign.pitch * 0.47 * unit
            line = max(2, round(half * 0.12))
            draw.rectangle((x - half, y - half, x + half, y + half), None, sign.frame, line)
        if k != sign.box or not sign.hidden:
            draw.text((x, y), character, sign.ink, letter, anchor="mm")
    return sheet.reduce(fine)


assert set(DARK) <= set(COLOUR_NAMES)
