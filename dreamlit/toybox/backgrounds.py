"""Ten backgrounds. Each takes a generator and a size and returns a picture [H, W, 3] in [0, 1].

Colours, horizon, scale and details vary from picture to picture; what names the background does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dreamlit.toybox.drawing import Colour, Field, Points, circle, noise

Background = Callable[[np.random.Generator, int, int], Field]


def _grid(height: int, width: int) -> Points:
    """y from 0 at the top to 1 at the bottom; x on the same scale, so that circles stay circles."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return Points((x + 0.5) / height, (y + 0.5) / height)


def _soft(distance: Field, height: int) -> Field:
    return np.clip(0.5 - distance * height, 0, 1)[..., None]


def _colour(rng: np.random.Generator, base: Colour, spread: float = 0.05) -> Field:
    """A colour near `base`: brighter or darker as a whole, and a little in each channel."""
    brightness = 1 + rng.uniform(-spread, spread) * 1.5
    return np.clip(np.array(base) * brightness + rng.uniform(-spread, spread, 3) * 0.5, 0, 1).astype(np.float32)


def _flat(height: int, width: int, colour: Field) -> Field:
    return np.broadcast_to(colour, (height, width, 3)).astype(np.float32).copy()


def _gradient(p: Points, top: Field, bottom: Field, end: float = 1.0) -> Field:
    part = np.clip(p.y / end, 0, 1)[..., None]
    return top * (1 - part) + bottom * part


def _ground(rng: np.random.Generator, p: Points, sky: Field, ground: Field, bumps: float = 0.0) -> tuple[Field, Field]:
    """Puts `ground` under `sky` along a horizon. Returns the picture and the distance to the ground."""
    height = p.y.shape[0]
    horizon = rng.uniform(0.30, 0.48)
    line = horizon + bumps * np.sin(p.x * rng.uniform(4, 8) + rng.uniform(0, 6.3))
    distance = line - p.y
    cover = _soft(distance.astype(np.float32), height)
    return sky * (1 - cover) + ground * cover, distance


def sand(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    sky = _gradient(p, _colour(rng, (0.50, 0.76, 0.93)), _colour(rng, (0.80, 0.92, 0.97)), 0.45)
    ripples = np.sin(p.y * rng.uniform(50, 70) + noise(rng, height, width, (3, 3)) * 3) * 0.035
    grains = noise(rng, height, width, (40, 40)) * 0.03
    ground = _colour(rng, (0.90, 0.78, 0.52)) + (ripples + grains)[..., None]
    return _ground(rng, p, sky, ground, 0.012)[0]


def grass(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    sky = _gradient(p, _colour(rng, (0.45, 0.70, 0.95)), _colour(rng, (0.78, 0.90, 0.98)), 0.45)
    blades = noise(rng, height, width, (12, 44)) * 0.12
    ground = _colour(rng, (0.30, 0.62, 0.22)) * (1 + blades)[..., None]
    return _ground(rng, p, sky, ground, 0.02)[0]


def snow(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    sky = _gradient(p, _colour(rng, (0.62, 0.70, 0.80)), _colour(rng, (0.80, 0.85, 0.90)), 0.45)
    ground = _colour(rng, (0.93, 0.95, 0.98), 0.02) + (noise(rng, height, width, (4, 5)) * 0.03)[..., None]
    picture, _ = _ground(rng, p, sky, ground, 0.03)
    for _ in range(int(rng.integers(14, 26))):
        flake = circle(p, rng.uniform(0, width / height), rng.uniform(0, 0.95), rng.uniform(0.008, 0.02))
        picture = picture + (0.99 - picture) * _soft(flake, height)
    return picture


def water(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    bend = noise(rng, height, width, (4, 4)) * 1.4
    waves = np.sin(p.y * rng.uniform(34, 46) + np.sin(p.x * rng.uniform(8, 13) + rng.uniform(0, 6.3)) * 1.3 + bend)
    blue = _gradient(p, _colour(rng, (0.25, 0.68, 0.82)), _colour(rng, (0.06, 0.36, 0.62)))
    return blue + (np.clip(waves - 0.3, 0, 1) * 0.22)[..., None]


def night(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    sky = _gradient(p, _colour(rng, (0.03, 0.04, 0.14), 0.02), _colour(rng, (0.12, 0.12, 0.30), 0.03), 0.7)
    for _ in range(int(rng.integers(14, 24))):
        star = circle(p, rng.uniform(0, width / height), rng.uniform(0, 0.62), rng.uniform(0.006, 0.014))
        sky = sky + (np.array((0.98, 0.96, 0.85)) - sky) * _soft(star, height)
    x, y, r = rng.uniform(0.1, 0.9) * width / height, rng.uniform(0.1, 0.2), rng.uniform(0.05, 0.09)
    moon = np.maximum(circle(p, x, y, r), -circle(p, x + r * 0.5, y - r * 0.2, r * 0.9))
    sky = sky + (np.array((0.98, 0.95, 0.80)) - sky) * _soft(moon.astype(np.float32), height)
    distance = rng.uniform(0.70, 0.80) + 0.03 * np.sin(p.x * rng.uniform(4, 8) + rng.uniform(0, 6.3)) - p.y
    cover = _soft(distance.astype(np.float32), height)
    return sky * (1 - cover) + _colour(rng, (0.05, 0.08, 0.10), 0.02) * cover


def sunset(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    sky = _gradient(p, _colour(rng, (0.42, 0.22, 0.50)), _colour(rng, (0.99, 0.62, 0.28)), 0.62)
    x, y = rng.uniform(0.15, 0.85) * width / height, rng.uniform(0.40, 0.58)
    sun = circle(p, x, y, rng.uniform(0.10, 0.16))
    sky = sky + np.array((0.25, 0.16, 0.02)) * np.exp(-np.maximum(sun, 0) * 7)[..., None]
    sky = sky + (np.array((1.0, 0.90, 0.50)) - sky) * _soft(sun, height)
    distance = rng.uniform(0.62, 0.72) + 0.02 * np.sin(p.x * rng.uniform(3, 7) + rng.uniform(0, 6.3)) - p.y
    cover = _soft(distance.astype(np.float32), height)
    return sky * (1 - cover) + _colour(rng, (0.34, 0.16, 0.22), 0.04) * cover


def bricks(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    row_height = rng.uniform(0.085, 0.115)
    shift = rng.uniform(0, 1)
    v = p.y / row_height + shift
    row = np.floor(v)
    u = p.x / (row_height * 2.1) + row * 0.5 + shift
    column = np.floor(u)
    tone = np.sin(column * 12.9898 + row * 78.233 + shift * 37) * 43758.5453
    tone = (tone - np.floor(tone) - 0.5) * 0.22
    edge = np.minimum(np.abs(u - np.round(u)) * 2.1, np.abs(v - np.round(v)))
    mortar = np.clip((0.09 - edge) * row_height * height + 0.5, 0, 1)[..., None]
    brick = _colour(rng, (0.66, 0.30, 0.22)) * (1 + tone)[..., None]
    return brick * (1 - mortar) + _colour(rng, (0.78, 0.72, 0.66)) * mortar


def wood(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    plank = rng.uniform(0.16, 0.24)
    at = p.y / plank + rng.uniform(0, 1)
    tone = np.sin(np.floor(at) * 12.9898 + 4) * 0.07
    grain = np.sin(at * 22 + noise(rng, height, width, (9, 3)) * 4) * 0.05
    picture = _colour(rng, (0.70, 0.48, 0.28)) * (1 + tone + grain)[..., None]
    gap = np.clip((0.045 - np.abs(at - np.round(at))) * plank * height + 0.5, 0, 1)
    return picture * (1 - 0.55 * gap)[..., None]


def tiles(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    size = rng.uniform(0.15, 0.21)
    u, v = p.x / size + rng.uniform(0, 1), p.y / size + rng.uniform(0, 1)
    smooth = np.clip(np.sin(np.pi * u) * np.sin(np.pi * v) * height * size / 3, -1, 1) * 0.5 + 0.5
    light, dark = _colour(rng, (0.88, 0.88, 0.84), 0.03), _colour(rng, (0.34, 0.36, 0.42), 0.04)
    part = smooth[..., None].astype(np.float32)
    return (light * part + dark * (1 - part)) * (1.04 - 0.12 * p.y)[..., None]


def blanket(rng: np.random.Generator, height: int, width: int) -> Field:
    p = _grid(height, width)
    size = rng.uniform(0.15, 0.20)
    u, v = p.x / size + rng.uniform(0, 1), p.y / size + rng.uniform(0, 1)
    row = np.floor(v)
    cell = Points((u + 0.5 * (row % 2)) % 1 - 0.5, v % 1 - 0.5)
    picture = _flat(height, width, _colour(rng, (0.95, 0.72, 0.78), 0.04))
    dots = np.clip(0.5 - circle(cell, 0, 0, 0.25) * size * height, 0, 1)[..., None]
    folds = 1 + noise(rng, height, width, (3, 3)) * 0.06
    return (picture + (_colour(rng, (0.99, 0.97, 0.95), 0.01) - picture) * dots) * folds[..., None]


BACKGROUNDS: dict[str, Background] = {
    "sand": sand,
    "grass": grass,
    "snow": snow,
    "water": water,
    "night": night,
    "sunset": sunset,
    "bricks": bricks,
    "wood": wood,
    "tiles": tiles,
    "blanket": blanket,
}
PHRASES: dict[str, str] = {
    "sand": "on sand",
    "grass": "on grass",
    "snow": "in the snow",
    "water": "in water",
    "night": "at night",
    "sunset": "at sunset",
    "bricks": "in front of a brick wall",
    "wood": "on a wooden table",
    "tiles": "on a tiled floor",
    "blanket": "on a dotted blanket",
}
