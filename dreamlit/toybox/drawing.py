"""Anti-aliased drawing with signed distances, so that a shape is equally smooth at 64 and at 512 pixels.

A distance is negative inside a shape and is measured in the shape's own units; `Canvas` knows how many pixels a unit
has and turns the distance at each pixel's centre into its coverage. Everything is NumPy: a seed draws the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]
OUTLINE = 0.045
"""Width of the dark line around an object, in object units."""


@dataclass(frozen=True)
class Points:
    """Coordinates of every pixel's centre: x to the right, y downwards, both [H, W]."""

    x: Field
    y: Field

    def shifted(self, x: float, y: float) -> Points:
        return Points(self.x - np.float32(x), self.y - np.float32(y))

    def turned(self, radians: float) -> Points:
        c, s = np.float32(np.cos(radians)), np.float32(np.sin(radians))
        return Points(c * self.x + s * self.y, c * self.y - s * self.x)

    def mirrored(self) -> Points:
        return Points(-self.x, self.y)


def circle(p: Points, x: float, y: float, radius: float) -> Field:
    return np.hypot(p.x - x, p.y - y) - radius


def ellipse(p: Points, x: float, y: float, rx: float, ry: float) -> Field:
    """Approximate distance: exact on the outline, of the right slope near it."""
    u, v = (p.x - x) / rx, (p.y - y) / ry
    length = np.hypot(u, v) + 1e-6
    slope = np.hypot(u / rx, v / ry) + 1e-6
    return length * (length - 1.0) / slope


def box(p: Points, x: float, y: float, half_width: float, half_height: float, corner: float = 0.0) -> Field:
    dx = np.abs(p.x - x) - (half_width - corner)
    dy = np.abs(p.y - y) - (half_height - corner)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - corner


def capsule(p: Points, ax: float, ay: float, bx: float, by: float, radius: float) -> Field:
    dx, dy = bx - ax, by - ay
    along = np.clip(((p.x - ax) * dx + (p.y - ay) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(p.x - ax - along * dx, p.y - ay - along * dy) - radius


def polygon(p: Points, corners: list[tuple[float, float]]) -> Field:
    """Exact distance to a simple polygon (distance to the nearest edge, signed by the crossing number)."""
    nearest = np.full_like(p.x, np.inf)
    inside = np.zeros(p.x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        nearest = np.minimum(nearest, capsule(p, ax, ay, bx, by, 0.0))
        crosses = (ay > p.y) != (by > p.y)
        inside ^= crosses & (p.x < (bx - ax) * (p.y - ay) / ((by - ay) or 1e-9) + ax)
    return np.where(inside, -nearest, nearest)


def star(p: Points, x: float, y: float, radius: float, points: int = 5, inner: float = 0.45) -> Field:
    corners = []
    for k in range(2 * points):
        angle, length = np.pi * k / points - np.pi / 2, radius * (1.0 if k % 2 == 0 else inner)
        corners.append((x + float(np.cos(angle)) * length, y + float(np.sin(angle)) * length))
    return polygon(p, corners)


def union(*distances: Field) -> Field:
    return np.minimum.reduce(distances)


def cut(distance: Field, hole: Field) -> Field:
    return np.maximum(distance, -hole)


def ring(distance: Field, width: float) -> Field:
    return np.abs(distance) - width / 2


@dataclass(frozen=True)
class Part:
    """One painted piece of an object: where it is and its colour at every point ([H, W, 3], or one colour for all)."""

    distance: Field
    paint: Field | Colour
    outlined: bool = True
    """Whether it belongs to the silhouette: eyes, windows and badges lie on other parts and do not."""


def noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, int]) -> Field:
    """Smooth value noise in [-1, 1], [height, width]: random values on a `cells` grid, interpolated."""
    grid = rng.uniform(-1, 1, (cells[0] + 2, cells[1] + 2)).astype(np.float32)

    def weights(size: int, count: int) -> tuple[NDArray[np.int64], Field]:
        at = (np.arange(size, dtype=np.float32) + 0.5) / size * count
        low = at.astype(np.int64)
        part = at - low
        return low, part * part * (3 - 2 * part)

    (top, fy), (left, fx) = weights(height, cells[0]), weights(width, cells[1])
    rows = grid[top] * (1 - fy)[:, None] + grid[top + 1] * fy[:, None]
    return rows[:, left] * (1 - fx) + rows[:, left + 1] * fx


class Canvas:
    """An RGB picture in [0, 1] and the mask of what was drawn as the object."""

    def __init__(self, picture: Field) -> None:
        self.picture = picture
        self.mask = np.zeros(picture.shape[:2], np.float32)

    def draw(self, parts: list[Part], pixels_per_unit: float) -> None:
        """Paints `parts` in order over a dark outline of their union, with light from the upper left."""
        silhouette = union(*(part.distance for part in parts if part.outlined))
        outline = np.clip(0.5 - (silhouette - OUTLINE) * pixels_per_unit, 0, 1)
        self._blend(outline, np.array((0.10, 0.09, 0.12), np.float32))
        self.mask = np.maximum(self.mask, outline)
        for part in parts:
            coverage = np.clip(0.5 - part.distance * pixels_per_unit, 0, 1)
            self._blend(coverage, np.asarray(part.paint, np.float32))

    def _blend(self, coverage: Field, colour: Field) -> None:
        self.picture = self.picture + (colour - self.picture) * coverage[..., None]
