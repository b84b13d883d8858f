"""Draws a run's exact-answer accuracy over samples: ``python -m training.plot RUN PICTURE.png``.

Reads the ``log.jsonl`` that ``train.py`` writes.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SHOWN = ("count1-4", "count5-9", "colour", "describe", "clip_describe")


def main(run: Path, picture: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    checks = [line for line in lines if "exact" in line]
    figure, axes = plt.subplots(figsize=(6.4, 3.8), dpi=100)
    for name in SHOWN:
        points = [
            (line["samples"], (line["exact"][f"{name}/en"] + line["exact"][f"{name}/zh"]) / 2)
            for line in checks
        ]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.6)
    axes.set_xlabel("samples seen")
    axes.set_ylabel("exact answers")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
