"""What every patch and every merged visual token shows: the labels that teach the eyes.

A picture's contents are handed over as ``Mark``s (a thing, a character, a box); ``paint`` lays them
on the grid of patches and on that of merged tokens. Called by ``pixels.py``; numpy only.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from training.drawing import KINDS

Array = np.ndarray[Any, np.dtype[Any]]
DIGITS, LETTERS = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LABELS = (*KINDS, *DIGITS, *LETTERS, "box")
NOTHING = len(LABELS)
PATCH_COVER, CELL_COVER = 0.3, 0.12  # of which less is covered, that counts as empty
IGNORE = -100


@dataclass(frozen=True)
class Mark:
    """One thing to be seen; place and extent are shares of the picture's width and height.

    ``own`` is what a token that shows it should know of the whole picture: how many of its kind
    there are, a character's place in its line, the digit that belongs in a box.
    """

    label: int
    colour: int
    x: float
    y: float
    wide: float
    high: float
    own: int
    way: int = 0


@dataclass
class Painted:
    """Labels of one picture: patches and merged tokens, both in the merger's order."""

    kind: Array  # (patches,)
    colour: Array  # (patches,), IGNORE where nothing is
    offset: Array  # (patches, 2): the way to the thing's centre, in patches
    splat: Array  # (patches,): the share of centres of things and characters, one for each
    centres: Array  # (patches, kinds): the same, by the kind of thing
    cell_kind: Array  # (cells,)
    cell_colour: Array
    cell_own: Array  # (cells,), IGNORE where nothing is
    cell_way: Array
    cell_place: Array  # (cells, 2): the middle of what it shows, as shares of the picture
    mass: Array  # (cells, kinds): the share of centres of each kind's things


def overlap(centre: Array, extent: Array, count: int) -> Array:
    """(marks, count): how much of each of ``count`` equal slices of 0 to 1 lies in each span."""
    edges = np.linspace(0, 1, count + 1)
    low, high = (centre - extent / 2)[:, None], (centre + extent / 2)[:, None]
    shared: Array = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    share: Array = np.clip(shared, 0, None) * count
    return share


def bilinear(centre: Array, count: int) -> Array:
    """(marks, count): each centre shared by the two slices whose middles it lies between."""
    place = np.clip(centre * count - 0.5, 0, count - 1)[:, None]
    share: Array = np.clip(1 - np.abs(np.arange(count) - place), 0, 1)
    return share


def merged(grid: Array) -> Array:
    """(marks, rows, columns) -> (marks, cells, 4), cells row by row."""
    many, rows, columns = grid.shape
    blocks = grid.reshape(many, rows // 2, 2, columns // 2, 2).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(many, rows * columns // 4, 4)


def winners(area: Array, least: float) -> Array:
    """The mark that covers most of each place, -1 where none covers ``least`` of it."""
    if not len(area):
        return np.full(area.shape[1], -1)
    return np.where(area.max(0) >= least, area.argmax(0), -1)


def paint(marks: list[Mark], rows: int, columns: int) -> Painted:
    """The labels on a grid of ``rows`` x ``columns`` patches."""
    x, y, wide, high = (
        np.array([getattr(mark, name) for mark in marks], np.float64).reshape(-1)
        for name in ("x", "y", "wide", "high")
    )
    down, across = overlap(y, high, rows), overlap(x, wide, columns)
    area = merged(down[:, :, None] * across[:, None, :])
    centres = merged(bilinear(y, rows)[:, :, None] * bilinear(x, columns)[:, None, :])
    far_y = y[:, None] * rows - np.arange(rows) - 0.5
    far_x = x[:, None] * columns - np.arange(columns) - 0.5
    shape = (len(marks), rows, columns)
    far_x = merged(np.broadcast_to(far_x[:, None, :], shape)).reshape(len(marks), rows * columns)
    far_y = merged(np.broadcast_to(far_y[:, :, None], shape)).reshape(len(marks), rows * columns)
    patch = winners(area.reshape(len(marks), rows * columns), PATCH_COVER)
    # a place that holds a character's centre is that character's
    held = np.array([mark.label >= len(KINDS) for mark in marks], bool)[:, None]
    cell = winners(area.mean(2) + held * (centres.sum(2) > 0.6), CELL_COVER)
    label = np.array([*(mark.label for mark in marks), NOTHING])
    colour = np.array([*(mark.colour for mark in marks), IGNORE])
    own = np.array([*(mark.own for mark in marks), IGNORE])
    way = np.array([*(mark.way for mark in marks), IGNORE])
    span = np.arange(rows * columns)
    offset = np.zeros((rows * columns, 2))
    if marks:
        offset = np.stack([far_x[patch, span], far_y[patch, span]], 1) * (patch >= 0)[:, None]
    by_kind = np.zeros((rows * columns // 4, 4, len(KINDS)), np.float32)
    for mark, share in zip(marks, centres, strict=True):
        if mark.label < len(KINDS):
            by_kind[:, :, mark.label] += share
    return Painted(
        label[patch],
        colour[patch],
        offset.astype(np.float32),
        centres.sum(0).reshape(-1).astype(np.float32),
        by_kind.reshape(-1, len(KINDS)),
        label[cell],
        colour[cell],
        own[cell],
        way[cell],
        np.stack([np.append(x, 0)[cell], np.append(y, 0)[cell]], 1).astype(np.float32),
        by_kind.sum(1),
    )


def moving(marks: list[Mark], index: int, way: int) -> list[Mark]:
    """The same marks, of which one goes some way."""
    return [replace(mark, way=way) if k == index else mark for k, mark in enumerate(marks)]
