"""Draws the demo's sample picture and sample clip: ``python -m training.samples FOLDER``.

Both are composed by hand, pleasant and inside what the model knows. Beside them lies a request
about the picture, which the banner of a started server names.
"""

import base64
import json
import sys
from pathlib import Path

from training.evaluate import clip_file
from training.scenes import COLOURS, Backdrop, Clip, Move, Scene, Thing, draw_scene

MEADOW = Backdrop("meadow", (176, 214, 240), (186, 216, 150), 0.34)


def thing(kind: str, colour: str, x: float, y: float, size: float, flip: bool = False) -> Thing:
    return Thing(kind, colour, COLOURS[colour], x, y, size, flip)


def sample_scene() -> Scene:
    """Three white sheep and a green tree."""
    things = (
        thing("sheep", "white", 0.27, 0.69, 0.32),
        thing("sheep", "white", 0.69, 0.59, 0.3, True),
        thing("sheep", "white", 1.05, 0.77, 0.32, True),
        thing("tree", "green", 0.22, 0.31, 0.33),
    )
    return Scene(512, 400, MEADOW, things)


def sample_clip() -> Clip:
    """A red ball rolls to the right past a green tree."""
    things = (thing("ball", "red", 0.2, 0.72, 0.3), thing("tree", "green", 0.72, 0.3, 0.36))
    return Clip(Scene(192, 144, MEADOW, things), (Move(0, "right", (0.92, 0.0)),), 12.0, 30)


def sample_request(picture: bytes) -> str:
    """The body that asks any model about the picture, a JPEG."""
    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "How many sheep are there in the picture?"},
    ]
    return json.dumps({"messages": [{"role": "user", "content": content}]}) + "\n"


def main(folder: Path) -> None:
    draw_scene(sample_scene(), fine=4).save(folder / "sample.jpg", quality=90)
    request = sample_request((folder / "sample.jpg").read_bytes())
    (folder / "sample-request.json").write_text(request, encoding="utf-8")
    (folder / "sample.mp4").write_bytes(clip_file(sample_clip()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
