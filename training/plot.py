"""Draws a run's curves: ``python -m training.plot RUN PICTURE.png``.

On the left what the eyes read off their tokens (``eyes.jsonl`` of ``look.py``) and their loss, on
the right exact answers (``log.jsonl`` of ``train.py``).
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

EYES = ("kind", "place", "own1-4", "own5-9", "box", "glyph", "way")
WORDS = (
    "count1-4",
    "count5-9",
    "colour",
    "where",
    "beside",
    "describe",
    "box",
    "read",
    "clip_describe",
)


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def main(run: Path, picture: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), dpi=100, sharey=True)
    seen = records(run / "eyes.jsonl")
    checks = [line for line in seen if "held" in line]
    for name in EYES:
        points = [(line["pictures"], line["held"].get(name, 0)) for line in checks]
        left.plot(*zip(*points, strict=True), label=name, linewidth=1.4)
    losses = [(line["pictures"], line["kind"]) for line in seen if "kind" in line]
    left.plot(*zip(*losses, strict=True), "k:", label="loss of kind", linewidth=1)
    said = [line for line in records(run / "log.jsonl") if "exact" in line]
    for name in WORDS:
        points = [
            (
                line["samples"],
                (line["exact"].get(f"{name}/en", 0) + line["exact"].get(f"{name}/zh", 0)) / 2,
            )
            for line in said
        ]
        right.plot(*zip(*points, strict=True), label=name, linewidth=1.4)
    for axes, title in ((left, "pictures seen (eyes)"), (right, "conversations (words)")):
        axes.set_xlabel(title)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=7)
    left.set_ylabel("share right")
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
