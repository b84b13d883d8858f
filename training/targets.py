"""What every merged visual token shows: the labels of the auxiliary cell head.

Called by ``pixels.py``; numpy only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from training.scenes import COLOUR_NAMES, KIND_NAMES, Scene, Thing

Array = np.ndarray[Any, np.dtype[Any]]
NOTHING = 0.12  # a cell of which less is covered counts as empty


@dataclass
class Cells:
    """Labels of a run of cells, row by row, picture by picture."""

    kind: Array
    colour: Array
    mass: Array


def overlap(centre: float, size: float, count: int) -> Array:
    """How much of the span lies in each of ``count`` equal slices of 0 to 1."""
    edges = np.linspace(0, 1, count + 1)
    low = np.clip(centre - size / 2, 0, 1)
    high = np.clip(centre + size / 2, 0, 1)
    shared: Array = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.maximum(shared, 0)


def cover(thing: Thing, scene: Scene, rows: int, columns: int) -> Array:
    """The share of the whole picture that the thing's box covers in each cell."""
    short = min(scene.width, scene.height)
    tall, wide = short / scene.height, short / scene.width
    size = thing.size * 0.9
    across = overlap(thing.x * wide, size * wide, columns)
    down = overlap(thing.y * tall, size * tall, rows)
    return np.outer(down, across).ravel()


def cells_of(scenes: list[Scene], rows: int, columns: int) -> Cells:
    """The labels of all cells of a picture, or of a clip's temporal patches."""
    kind = np.full((len(scenes), rows * columns), len(KIND_NAMES), np.int64)
    colour = np.full((len(scenes), rows * columns), len(COLOUR_NAMES), np.int64)
    mass = np.zeros((len(scenes), rows * columns, len(KIND_NAMES)), np.float32)
    for t, scene in enumerate(scenes):
        best = np.full(rows * columns, NOTHING / (rows * columns))
        for thing in scene.things:
            area = cover(thing, scene, rows, columns)
            mass[t, :, KIND_NAMES.index(thing.kind)] += area / max(area.sum(), 1e-6)
            win = area > best
            kind[t, win] = KIND_NAMES.index(thing.kind)
            colour[t, win] = COLOUR_NAMES.index(thing.colour)
            best[win] = area[win]
    return Cells(kind.ravel(), colour.ravel(), mass.reshape(-1, len(KIND_NAMES)))
