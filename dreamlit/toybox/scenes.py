"""Scenes of the toybox: one thing before one background, with a caption and the whole truth about both.

    scene = draw_scene(seed=7)          # scene.picture, scene.mask, scene.truth, scene.caption

A scene is a pure function of its seed. Of the 800 combinations of class, colour and background 256 are held out
(`HELD_OUT`): no training scene shows one, so that what a model makes of them is composition and not memory.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dreamlit.toybox.backgrounds import BACKGROUNDS, PHRASES
from dreamlit.toybox.drawing import Canvas, Colour, Field, Part, Points, circle
from dreamlit.toybox.shapes import BADGES, SHAPES, Look

COLOURS: dict[str, Colour] = {
    "red": (0.86, 0.13, 0.13),
    "orange": (0.98, 0.53, 0.08),
    "yellow": (0.98, 0.86, 0.16),
    "green": (0.16, 0.66, 0.24),
    "blue": (0.14, 0.32, 0.88),
    "purple": (0.52, 0.18, 0.72),
    "pink": (0.97, 0.50, 0.72),
    "white": (0.95, 0.95, 0.95),
}
PATTERNS = ("plain", "striped", "spotted", "checked")
SIZES: tuple[tuple[int, int], ...] = ((64, 64), (80, 48), (48, 80))
"""Widths and heights of the training scenes, in pixels."""
_COMBINATIONS = tuple(itertools.product(SHAPES, COLOURS, BACKGROUNDS))
HELD_OUT = frozenset(_COMBINATIONS[i] for i in np.random.default_rng(20).permutation(len(_COMBINATIONS))[:256])


@dataclass(frozen=True)
class Individual:
    """One particular thing: everything that stays when it is photographed again."""

    kind: str
    colour: str
    pattern: str = "plain"
    accent: str = "white"
    badge: str | None = None
    badge_colour: str = "yellow"
    genes: int = 0
    """Seed of the proportions, the exact shade and the pattern's scale."""


@dataclass(frozen=True)
class Pose:
    """Where and how the thing stands. Positions are fractions of the picture's width and height."""

    x: float = 0.5
    y: float = 0.56
    size: float = 0.34
    """Half the thing's extent, as a fraction of the picture's shorter side."""
    tilt: float = 0.0
    mirrored: bool = False
    light: float = 1.0


@dataclass(frozen=True)
class Scene:
    picture: NDArray[np.uint8]
    """[H, W, 3]."""
    mask: NDArray[np.uint8]
    """[H, W]: 255 on the thing, 0 elsewhere, anti-aliased."""
    individual: Individual
    pose: Pose
    background: str
    caption: str


def _shade(rng: np.random.Generator, colour: str) -> Field:
    base = np.array(COLOURS[colour], np.float32)
    spread = 0.02 if colour == "white" else 0.06
    return np.clip(base * (1 + rng.uniform(-spread, spread)) + rng.uniform(-0.025, 0.025, 3), 0, 1).astype(np.float32)


def _pattern(kind: str, p: Points, rng: np.random.Generator, main: Field, second: Field) -> Field:
    """The coat: `second` covers at most about a third of it, so that `main` names the thing's colour."""
    scale, turn, shift = rng.uniform(0.9, 1.25), rng.uniform(-0.5, 0.5), rng.uniform(0, 1)
    q = p.turned(float(turn))
    if kind == "striped":
        inside = np.abs((q.x * 2.6 * scale + shift) % 1 - 0.5) - 0.17
        width = 2.6 * scale
    elif kind == "spotted":
        u, v = q.x * 2.4 * scale + shift, q.y * 2.4 * scale
        u = u + 0.5 * (np.floor(v) % 2)
        inside = circle(Points(u % 1 - 0.5, v % 1 - 0.5), 0, 0, 0.30)
        width = 2.4 * scale
    elif kind == "checked":
        u, v = (q.x * 2.2 * scale + shift) % 1 - 0.5, (q.y * 2.2 * scale) % 1 - 0.5
        inside = np.maximum(np.abs(u), np.abs(v)) - 0.29
        width = 2.2 * scale
    else:
        return np.broadcast_to(main, (*p.x.shape, 3))
    # The edge is softened over 0.04 units whatever the picture's size: about a pixel at 64.
    cover = np.clip(0.5 - inside / width / 0.04, 0, 1)[..., None]
    return main + (second - main) * cover


def _parts(individual: Individual, p: Points) -> list[Part]:
    rng = np.random.default_rng((individual.genes, 3))
    main, accent = _shade(rng, individual.colour), _shade(rng, individual.accent)
    badge_colour = _shade(rng, individual.badge_colour)
    light = np.clip(1.0 - 0.17 * p.y - 0.08 * p.x, 0.72, 1.22)[..., None].astype(np.float32)
    coat = np.clip(_pattern(individual.pattern, p, rng, main, accent) * light, 0, 1)

    def badge_at(x: float, y: float, radius: float) -> list[Part]:
        if individual.badge is None:
            return []
        plate = circle(p, x, y, radius * 1.15)
        mark = BADGES[individual.badge](p, x, y, radius * 0.95)
        rim: Colour = (0.13, 0.12, 0.15)
        return [Part(plate, rim, False), Part(mark, tuple(badge_colour), False)]  # type: ignore[arg-type]

    look = Look(coat, np.clip(accent * light, 0, 1), badge_at)
    return SHAPES[individual.kind](p, lambda low, high: float(rng.uniform(low, high)), look)


def render(individual: Individual, pose: Pose, background: str, seed: int, size: tuple[int, int]) -> Scene:
    """Draws `individual` in `pose` on a `background` whose details come from `seed`. size: (width, height)."""
    width, height = size
    canvas = Canvas(BACKGROUNDS[background](np.random.default_rng((seed, 1)), height, width))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + np.float32(0.5)
    unit = pose.size * min(width, height)
    p = Points((x - pose.x * width) / unit, (y - pose.y * height) / unit)
    shadow = np.clip(1.0 - (np.hypot(p.x / 0.95, (p.y - 0.98) / 0.16)), 0, 1)
    canvas.picture = canvas.picture * (1 - 0.55 * shadow)[..., None]
    p = p.turned(pose.tilt)
    p = p.mirrored() if pose.mirrored else p
    canvas.draw(_parts(individual, p), unit)
    picture = np.clip(canvas.picture * pose.light, 0, 1)
    return Scene(
        np.round(picture * 255).astype(np.uint8),
        np.round(np.clip(canvas.mask, 0, 1) * 255).astype(np.uint8),
        individual,
        pose,
        background,
        "",
    )


def draw_individual(rng: np.random.Generator, kind: str, colour: str) -> Individual:
    others = [name for name in COLOURS if name != colour]
    return Individual(
        kind,
        colour,
        pattern=str(rng.choice(PATTERNS, p=(0.55, 0.15, 0.15, 0.15))),
        accent=str(rng.choice(others)),
        badge=str(rng.choice(list(BADGES))) if rng.random() < 0.25 else None,
        badge_colour=str(rng.choice(others)),
        genes=int(rng.integers(2**31)),
    )


def draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        x=float(rng.uniform(0.40, 0.60)),
        y=float(rng.uniform(0.50, 0.60)),
        size=float(rng.uniform(0.27, 0.40)),
        tilt=float(rng.uniform(-0.16, 0.16)),
        mirrored=bool(rng.random() < 0.5),
        light=float(rng.uniform(0.94, 1.06)),
    )


def draw_scene(seed: int, *, held_out: bool = False, size: tuple[int, int] | None = None) -> Scene:
    """The scene of `seed`: of the training combinations, or of the held-out ones. size: (width, height); 64 x 64 in
    seven of ten, else one of the oblong `SIZES`."""
    rng = np.random.default_rng((seed, int(held_out)))
    while True:
        kind, colour, background = _COMBINATIONS[int(rng.integers(len(_COMBINATIONS)))]
        if ((kind, colour, background) in HELD_OUT) == held_out:
            break
    individual, pose = draw_individual(rng, kind, colour), draw_pose(rng)
    chosen = SIZES[int(rng.choice(len(SIZES), p=(0.7, 0.15, 0.15)))]
    scene = render(individual, pose, background, int(rng.integers(2**31)), size or chosen)
    return replace(scene, caption=caption(rng, individual, background, pose))


OPENINGS = ("a photo of", "a picture of", "a nice photo of", "a toy box photo of", "")


def caption(rng: np.random.Generator, individual: Individual, background: str, pose: Pose) -> str:
    """One of the grammar's forms, from "a fish" to "a photo of a large red striped fish with a star badge on sand"."""
    words, tail = [], ""
    if pose.size > 0.37 and rng.random() < 0.4:
        words.append("large")
    if pose.size < 0.30 and rng.random() < 0.4:
        words.append("small")
    if rng.random() < 0.92:
        words.append(individual.colour)
    if individual.pattern != "plain" and rng.random() < 0.6:
        words.append(individual.pattern)
    if individual.badge and rng.random() < 0.6:
        tail = f" with a {individual.badge_colour} {individual.badge} badge"
    words.append(individual.kind)
    article = "an" if words[0][0] in "aeiou" else "a"
    place = f" {PHRASES[background]}" if rng.random() < 0.92 else ""
    opening = str(rng.choice(OPENINGS, p=(0.55, 0.1, 0.1, 0.05, 0.2)))
    text = f"{opening} {article} {' '.join(words)}{tail}{place}".strip()
    if place and rng.random() < 0.08:
        return f"{' '.join(words)}{tail},{place}"
    return text
