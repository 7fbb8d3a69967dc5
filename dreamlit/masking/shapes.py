"""The arithmetic of masks: the largest part, growing and shrinking, soft edges, and how well two agree."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter


def intersection_over_union(mask: np.ndarray, truth: np.ndarray) -> float:
    """How well two masks agree, from 0 (nothing in common) to 1 (equal).

    For masks of zeros and ones it is the area of the overlap divided by that of the union; for grey ones the sum of the
    smaller values divided by the sum of the larger (Ruzicka's index), which is the same for zeros and ones. Two empty
    masks agree.

    Args:
        mask: bool, or floats in [0, 1], [H, W].
        truth: the same.

    Raises:
        ValueError: when the sizes differ, or values are not in [0, 1].
    """
    if mask.shape != truth.shape:
        raise ValueError(f"a mask of {mask.shape} cannot be compared with one of {truth.shape}")
    a, b = mask.astype(np.float64), truth.astype(np.float64)
    if not all(((values >= 0) & (values <= 1)).all() for values in (a, b)):  # false for NaN too
        raise ValueError("a mask has values outside [0, 1]; divide 8-bit values by 255")
    union = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / union) if union else 1.0


def largest_part(region: np.ndarray) -> np.ndarray:
    """bool [H, W] -> bool [H, W]: its largest connected part (neighbours share a side or a corner).

    Of parts of one size, the one that comes first in reading order.
    """
    rows, starts, ends = _runs(region)
    if not len(rows):
        return region.copy()
    labels = _joined(len(rows), *_touching(rows, starts, ends))
    areas = np.bincount(labels, weights=ends - starts, minlength=len(rows))
    kept = labels == areas.argmax()  # labels are the first run of each part
    edges = np.zeros((region.shape[0], region.shape[1] + 1), np.int8)
    edges[rows[kept], starts[kept]] = 1
    edges[rows[kept], ends[kept]] = -1  # runs of a row never touch, so that no start is written over
    return np.cumsum(edges, axis=1, dtype=np.int8)[:, :-1].astype(bool)


def _runs(region: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, first column, column behind the last) of each unbroken run of True, in reading order."""
    steps = np.diff(np.pad(region, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    return rows, starts, np.nonzero(steps == -1)[1]


def _touching(rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs (above, below) of neighbouring rows that touch, corners included."""
    width = int(ends.max()) + 2
    # runs in reading order are sorted by row * width + column, starts as well as ends
    above_first = np.searchsorted(rows * width + ends, (rows - 1) * width + starts, side="left")
    above_last = np.searchsorted(rows * width + starts, (rows - 1) * width + ends, side="right")
    counts = np.maximum(above_last - above_first, 0)
    below = np.repeat(np.arange(len(rows)), counts)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(above_first, counts) + offsets, below


def _joined(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[count]: the lowest number that each of `count` items is connected with, over pairs of items."""
    labels = np.arange(count)
    while True:
        lowest = np.minimum(labels[one], labels[other])
        after = labels.copy()
        # also what an item points to takes part, or a long thin part would need a pass for each of its rows
        for target in (one, other, labels[one], labels[other]):
            np.minimum.at(after, target, lowest)
        after = after[after]
        if (after == labels).all():
            return labels
        labels = after


def grown(region: np.ndarray, radius: float) -> np.ndarray:
    """bool [H, W] -> bool [H, W]: all pixels at most `radius` pixels from the region; a negative one shrinks it.

    Distances are Euclidean, from pixel centre to pixel centre. A region that is cut off by the picture's edge does
    not shrink there.
    """
    if radius < 0:
        return ~grown(~region, -radius)
    reach = int(radius)
    if not reach or not region.any():
        return region.copy()
    width, above = region.shape[1], _rows_since(region)
    vertical = np.minimum(above, _rows_since(region[::-1])[::-1])  # to the nearest pixel of the region in the column
    vertical = np.minimum(vertical, reach + 1).astype(np.uint16)  # small numbers: this is most of the time
    result = np.zeros_like(region)
    for dx in range(min(reach, width - 1) + 1):
        near = vertical <= math.isqrt(int(radius * radius - dx * dx))
        result[:, dx:] |= near[:, : width - dx]
        result[:, : width - dx] |= near[:, dx:]
    return result


def _rows_since(region: np.ndarray) -> np.ndarray:
    """int32 [H, W]: how many rows up the nearest pixel of the region is; very many where there is none."""
    height = region.shape[0]
    rows = np.arange(height, dtype=np.int32)[:, None]
    last = np.maximum.accumulate(np.where(region, rows, np.int32(-(1 << 20))), axis=0)
    return rows - last


def softened(mask: np.ndarray, sigma: float) -> np.ndarray:
    """uint8 [H, W] -> uint8 [H, W] with edges blurred by a Gaussian of `sigma` pixels; a plain mask stays as it is."""
    if sigma <= 0:
        return mask.copy()
    return np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(sigma)))
