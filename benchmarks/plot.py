"""Draws decode against batch and context: `python -m benchmarks.plot RESULTS.jsonl PICTURE.png`.

Reads what `decode.py` wrote to a file of JSON lines; of a shape that stands there more than once,
the last counts, unless other programs disturbed it. Needs matplotlib (`pip install
'.[bench]'`).
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.program import DISTURBED

INK, QUIET = "#24292f", "#8c959f"
BLUE, SKY, ORANGE = "#0969da", "#6cb6ff", "#bc4c00"
SETTINGS: Any = {
    "font.size": 9,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
Point = dict[str, Any]


def main(results: Path, picture: Path) -> None:
    figures = _joined([json.loads(line) for line in results.read_text("utf-8").splitlines()])
    plt.rcParams.update(SETTINGS)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.7), dpi=160)
    _by_batch(left, figures)
    _by_context(right, figures)
    for axes in (left, right):
        axes.set_ylim(0, axes.get_ylim()[1] * 1.06)
        axes.grid(axis="y", color="#eaeef2")
        axes.set_axisbelow(True)
    machine = figures["machine"]
    figure.text(
        0.995,
        0.012,
        f"{machine['cpu']}, {machine['threads']} threads, float32, torch {machine['torch']}",
        ha="right",
        color=QUIET,
        fontsize=7.5,
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1), w_pad=3)
    figure.savefig(picture)


def _joined(lines: list[Point]) -> Point:
    """All of decode's lines as one."""
    lines = [line for line in lines if line["benchmark"] == "decode"]
    points = {(p["batch"], p["context"], p["layout"]): p for line in lines for p in line["points"]}
    peers = {batch: ms for line in lines for batch, ms in line["generate_ms"].items()}
    ordered = [points[shape] for shape in sorted(points) if not _is_disturbed(points[shape])]
    return {"points": ordered, "generate_ms": peers, "machine": lines[-1]["machine"]}


def _is_disturbed(point: Point) -> bool:
    return bool(point.get("disturbed")) or point.get("cores_of_others", 0.0) >= DISTURBED


def _by_batch(axes: Any, figures: Point) -> None:
    context = figures["points"][0]["context"]
    points = _chosen(figures, lambda p: p["context"] == context and p["layout"] == "first")
    _line(axes, points, "batch", "step_ms", BLUE, "litevl")
    _line(axes, points, "batch", "limit_ms", QUIET, "machine's limit", "--")
    peers = [(int(batch), ms) for batch, ms in figures["generate_ms"].items()]
    axes.plot(*zip(*peers, strict=True), "o", color=ORANGE, markersize=5)
    axes.annotate("transformers\ngenerate", peers[-1], (7, 0), **_label(ORANGE), va="center")
    _scale(axes, sorted({p["batch"] for p in points}))
    axes.set_title(f"A decode step against the batch, context {context}", loc="left", color=INK)
    axes.set_xlabel("sequences in the batch")
    axes.set_ylabel("milliseconds a step")


def _by_context(axes: Any, figures: Point) -> None:
    batches = sorted({p["batch"] for p in figures["points"] if p["context"] > 256})
    for batch, colour in zip(batches, (SKY, BLUE), strict=True):
        own = _chosen(figures, lambda p, b=batch: p["batch"] == b)  # type: ignore[misc]
        first = [p for p in own if p["layout"] == "first"]
        later = [p for p in own if p["layout"] == "later"]
        _line(axes, first, "context", "step_ms", colour, f"batch {batch}")
        _line(axes, first, "context", "limit_ms", colour, "", ":")
        if later:
            _line(axes, later, "context", "step_ms", colour, "", "--")
            start = (later[0]["context"], later[0]["step_ms"])
            axes.annotate("once blocks mix", start, (-2, 6), **_label(colour), ha="right")
    _scale(axes, sorted({p["context"] for p in figures["points"]}))
    axes.set_title("A decode step against the context", loc="left", color=INK)
    axes.set_xlabel("tokens of context (dotted: machine's limit)")


def _chosen(figures: Point, wanted: Callable[[Point], bool]) -> list[Point]:
    return [point for point in figures["points"] if wanted(point)]


def _line(
    axes: Any, points: list[Point], x: str, y: str, colour: str, label: str, style: str = "-"
) -> None:
    """A line with its name at its end."""
    xs, ys = [point[x] for point in points], [point[y] for point in points]
    marker = "o" if style == "-" else ""
    axes.plot(xs, ys, style, marker=marker, color=colour, markersize=4, linewidth=1.6)
    axes.annotate(label, (xs[-1], ys[-1]), (6, 0), **_label(colour), va="center")


def _label(colour: str) -> dict[str, Any]:
    return {"textcoords": "offset points", "color": colour, "fontsize": 8.5}


def _scale(axes: Any, ticks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else str(tick) for tick in ticks])
    axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 3.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
