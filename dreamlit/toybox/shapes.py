"""Ten classes of things. Each is drawn in its own coordinates: the thing fills about [-1, 1] x [-1, 1], y downwards.

A class takes genes (a fixed generator: the same seed is the same individual), its coat (main colour and pattern)
and its accent colour, and gives the parts in the order in which they are painted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dreamlit.toybox.drawing import (
    Colour,
    Field,
    Part,
    Points,
    box,
    capsule,
    circle,
    cut,
    ellipse,
    polygon,
    ring,
    star,
    union,
)

DARK: Colour = (0.13, 0.12, 0.15)
GLASS: Colour = (0.72, 0.88, 0.95)
METAL: Colour = (0.62, 0.64, 0.68)
STEM: Colour = (0.24, 0.50, 0.20)
CREAM: Colour = (0.97, 0.93, 0.84)


@dataclass(frozen=True)
class Look:
    """What an individual is painted with: `coat` and `accent` are pictures [H, W, 3] or plain colours."""

    coat: Field | Colour
    accent: Field | Colour
    badge_at: Callable[[float, float, float], list[Part]]
    """Gives the badge (or nothing) at x, y with a radius, on the place where a class carries one."""


Genes = Callable[[float, float], float]
"""Draws the individual's next proportion between two bounds."""
Shape = Callable[[Points, Genes, Look], list[Part]]


def _eyes(p: Points, x: float, y: float, gap: float, radius: float) -> list[Part]:
    white = union(circle(p, x - gap, y, radius), circle(p, x + gap, y, radius))
    pupil = union(circle(p, x - gap, y, radius * 0.55), circle(p, x + gap, y, radius * 0.55))
    return [Part(white, (0.97, 0.97, 0.97), False), Part(pupil, DARK, False)]


def toy(p: Points, g: Genes, look: Look) -> list[Part]:
    """A teddy bear."""
    head, ear, belly = g(0.36, 0.44), g(0.13, 0.19), g(0.38, 0.48)
    spread, arm = g(0.26, 0.34), g(0.1, 0.5)
    ears = union(circle(p, -spread, -0.72, ear), circle(p, spread, -0.72, ear))
    inner = union(circle(p, -spread, -0.72, ear * 0.5), circle(p, spread, -0.72, ear * 0.5))
    arms = union(capsule(p, -belly * 0.8, 0.1, -0.68, arm, 0.14), capsule(p, belly * 0.8, 0.1, 0.68, arm, 0.14))
    feet = union(ellipse(p, -0.3, 0.82, 0.22, 0.16), ellipse(p, 0.3, 0.82, 0.22, 0.16))
    return [
        Part(ears, look.coat),
        Part(inner, look.accent, False),
        Part(arms, look.coat),
        Part(ellipse(p, 0, 0.38, belly, 0.48), look.coat),
        Part(feet, look.coat),
        *look.badge_at(0, 0.42, 0.24),
        Part(circle(p, 0, -0.42, head), look.coat),
        Part(ellipse(p, 0, -0.30, head * 0.5, head * 0.38), CREAM, False),
        Part(ellipse(p, 0, -0.36, 0.08, 0.06), DARK, False),
        Part(union(circle(p, -0.15, -0.52, 0.055), circle(p, 0.15, -0.52, 0.055)), DARK, False),
    ]


def robot(p: Points, g: Genes, look: Look) -> list[Part]:
    head, body, tall = g(0.28, 0.42), g(0.40, 0.52), g(0.30, 0.40)
    corner, antenna, arm = g(0.03, 0.14), g(-0.98, -0.88), g(0.0, 0.55)
    limbs = union(
        capsule(p, -body - 0.08, 0.08, -body - 0.2, arm, 0.075),
        capsule(p, body + 0.08, 0.08, body + 0.2, arm, 0.075),
        box(p, -body * 0.5, 0.75, 0.11, 0.2),
        box(p, body * 0.5, 0.75, 0.11, 0.2),
    )
    feet = union(box(p, -body * 0.5, 0.9, 0.19, 0.08, 0.05), box(p, body * 0.5, 0.9, 0.19, 0.08, 0.05))
    return [
        Part(capsule(p, 0, -0.6, 0, antenna, 0.03), METAL),
        Part(circle(p, 0, antenna, 0.08), look.accent),
        Part(limbs, METAL),
        Part(feet, look.accent),
        Part(box(p, 0, -0.46, head, 0.26, corner), look.coat),
        Part(box(p, 0, 0.28, body, tall, corner), look.coat),
        Part(box(p, 0, -0.26, head * 0.5, 0.03), DARK, False),
        *_eyes(p, 0, -0.5, head * 0.45, 0.1),
        *look.badge_at(0, 0.26, 0.24),
    ]


def house(p: Points, g: Genes, look: Look) -> list[Part]:
    half, wall, roof = g(0.55, 0.8), g(-0.22, 0.02), g(-0.95, -0.7)
    eaves, door, chimney = half + g(0.08, 0.2), g(-0.3, 0.3) * half, g(0.35, 0.6) * half
    window = -door if abs(door) > 0.12 else half * 0.55
    pane = box(p, window, 0.25, 0.15, 0.15)
    return [
        Part(box(p, chimney, (wall + roof) / 2, 0.09, 0.26), (0.50, 0.30, 0.26)),
        Part(box(p, 0, (wall + 0.9) / 2, half, (0.9 - wall) / 2), look.coat),
        Part(polygon(p, [(-eaves, wall), (0.0, roof), (eaves, wall)]), look.accent),
        Part(box(p, door, 0.62, 0.14, 0.28), (0.40, 0.26, 0.18), False),
        Part(circle(p, door + 0.07, 0.64, 0.03), CREAM, False),
        Part(pane, GLASS, False),
        Part(np.maximum(pane, np.minimum(np.abs(p.x - window), np.abs(p.y - 0.25)) - 0.025), CREAM, False),
        *look.badge_at(0, (wall * 0.7 + roof * 0.3), 0.19),
    ]


def fish(p: Points, g: Genes, look: Look) -> list[Part]:
    long, high, tail, fork = g(0.58, 0.7), g(0.34, 0.52), g(0.3, 0.48), g(0.05, 0.22)
    back = g(0.25, 0.5)
    fin = polygon(p, [(-0.25, -high * 0.7), (0.05, -high - back * 0.6), (0.35, -high * 0.6)])
    low = polygon(p, [(-0.1, high * 0.75), (0.0, high + 0.2), (0.22, high * 0.7)])
    tail_part = polygon(p, [(0.42, 0.0), (0.98, -tail), (0.98 - fork, 0.0), (0.98, tail)])
    return [
        Part(union(fin, low), look.accent),
        Part(tail_part, look.accent),
        Part(ellipse(p, -0.15, 0, long, high), look.coat),
        Part(np.maximum(ring(circle(p, -0.68, 0.0, 0.36), 0.05), ellipse(p, -0.15, 0, long, high)), DARK, False),
        Part(circle(p, -0.55, -high * 0.25, 0.11), (0.97, 0.97, 0.97), False),
        Part(circle(p, -0.57, -high * 0.25, 0.06), DARK, False),
        *look.badge_at(0.08, 0.0, 0.22),
    ]


def flower(p: Points, g: Genes, look: Look) -> list[Part]:
    count, long, wide, heart = int(g(5, 8.99)), g(0.26, 0.34), g(0.18, 0.25), g(0.16, 0.23)
    sway, turn = g(-0.2, 0.2), g(0, 1)
    petals = []
    for k in range(count):
        angle = 2 * np.pi * (k + turn) / count
        q = p.shifted(0, -0.38).turned(float(angle))
        petals.append(ellipse(q, 0, -0.34, wide, long))
    leaf = p.shifted(sway * 0.4, 0.5)
    leaves = union(ellipse(leaf.turned(0.5), 0.27, 0, 0.26, 0.10), ellipse(leaf.turned(-0.5), -0.27, 0, 0.26, 0.10))
    return [
        Part(capsule(p, 0, -0.2, sway, 0.95, 0.055), STEM),
        Part(leaves, (0.34, 0.64, 0.28)),
        Part(union(*petals), look.coat),
        Part(circle(p, 0, -0.38, heart), look.accent, False),
        *look.badge_at(0, -0.38, heart),
    ]


def cup(p: Points, g: Genes, look: Look) -> list[Part]:
    top, base, high, handle = g(0.48, 0.66), g(0.34, 0.52), g(0.5, 0.75), g(0.2, 0.3)
    body = polygon(p, [(-top, -high), (top, -high), (base, 0.72), (-base, 0.72)]) - 0.05
    grip = ring(ellipse(p, (top + base) / 2, 0.02, handle + 0.08, 0.34), 0.13)
    saucer = ellipse(p, 0, 0.80, top + 0.2, 0.13)
    return [
        Part(saucer, look.accent),
        Part(np.maximum(grip, (top + base) / 2 - p.x), look.coat),
        Part(body, look.coat),
        Part(ellipse(p, 0, -high, top + 0.04, 0.13), CREAM),
        Part(ellipse(p, 0, -high + 0.02, top - 0.08, 0.08), (0.36, 0.22, 0.14), False),
        *look.badge_at(0, 0.12, 0.26),
    ]


def car(p: Points, g: Genes, look: Look) -> list[Part]:
    roof, front, rear, wheel = g(-0.55, -0.35), g(0.2, 0.45), g(0.3, 0.6), g(0.18, 0.24)
    cabin = polygon(p, [(-front - 0.15, 0.05), (-front * 0.6, roof), (rear * 0.7, roof), (rear + 0.15, 0.05)]) - 0.04
    pane = polygon(p, [(-front + 0.02, 0.0), (-front * 0.5, roof + 0.1), (rear * 0.55, roof + 0.1), (rear - 0.02, 0.0)])
    wheels = union(circle(p, -0.52, 0.48, wheel), circle(p, 0.52, 0.48, wheel))
    hubs = union(circle(p, -0.52, 0.48, wheel * 0.45), circle(p, 0.52, 0.48, wheel * 0.45))
    return [
        Part(cabin, look.coat),
        Part(cut(pane, box(p, 0.05, -0.2, 0.035, 0.5)), GLASS, False),
        Part(box(p, 0, 0.24, 0.96, 0.26, 0.14), look.coat),
        Part(box(p, 0, 0.42, 0.97, 0.05, 0.03), look.accent),
        Part(wheels, DARK),
        Part(hubs, METAL, False),
        Part(ellipse(p, -0.86, 0.18, 0.07, 0.09), (0.99, 0.95, 0.70), False),
        *look.badge_at(0.02, 0.18, 0.2),
    ]


def bird(p: Points, g: Genes, look: Look) -> list[Part]:
    body, head, beak, tail = g(0.46, 0.58), g(0.24, 0.31), g(0.18, 0.34), g(0.2, 0.5)
    wing, lift = g(0.28, 0.4), g(-0.2, 0.2)
    x, y = -0.38, -0.42
    legs = union(capsule(p, -0.08, 0.5, -0.1, 0.88, 0.035), capsule(p, 0.16, 0.5, 0.14, 0.88, 0.035))
    feet = union(capsule(p, -0.22, 0.9, -0.02, 0.9, 0.035), capsule(p, 0.02, 0.9, 0.22, 0.9, 0.035))
    return [
        Part(union(legs, feet), (0.90, 0.55, 0.18)),
        Part(
            polygon(p, [(x - head * 0.7, y - 0.1), (x - head - beak, y + 0.04), (x - head * 0.7, y + 0.14)]),
            (0.95, 0.62, 0.15),
        ),
        Part(polygon(p, [(0.3, 0.0), (0.96, -tail), (0.9, 0.2), (0.4, 0.3)]), look.accent),
        Part(ellipse(p.shifted(0.05, 0.15).turned(0.25), 0, 0, body, 0.42), look.coat),
        Part(circle(p, x, y, head), look.coat),
        Part(ellipse(p.shifted(0.16, 0.1).turned(0.45 + lift), 0, 0, wing, 0.2), look.accent, False),
        Part(circle(p, x - 0.08, y - 0.05, 0.085), (0.97, 0.97, 0.97), False),
        Part(circle(p, x - 0.1, y - 0.05, 0.05), DARK, False),
        *look.badge_at(-0.14, 0.26, 0.18),
    ]


def boat(p: Points, g: Genes, look: Look) -> list[Part]:
    deck, keel, mast, sail = g(0.75, 0.95), g(0.4, 0.6), g(-0.98, -0.85), g(0.5, 0.72)
    lean, flag = g(-0.1, 0.1), g(0.1, 0.2)
    hull = polygon(p, [(-deck, 0.26), (deck, 0.26), (keel, 0.84), (-keel, 0.84)])
    main = polygon(p, [(lean + 0.07, mast + 0.14), (lean + 0.07 + sail, 0.2), (0.07, 0.2)])
    jib = polygon(p, [(lean - 0.06, mast + 0.3), (-0.06, 0.2), (-0.06 - sail * 0.7, 0.2)])
    return [
        Part(capsule(p, 0, 0.34, lean, mast, 0.04), (0.48, 0.32, 0.20)),
        Part(polygon(p, [(lean, mast), (lean - flag * 1.4, mast + flag * 0.5), (lean, mast + flag)]), look.accent),
        Part(main, look.coat),
        Part(jib, CREAM),
        Part(hull, look.coat),
        Part(np.maximum(hull, np.abs(p.y - 0.34) - 0.05), look.accent, False),
        *look.badge_at(0.0, 0.6, 0.19),
    ]


def mushroom(p: Points, g: Genes, look: Look) -> list[Part]:
    cap, high, stem, flare = g(0.68, 0.92), g(0.55, 0.85), g(0.2, 0.32), g(0.02, 0.16)
    rim = g(0.0, 0.14)
    dome = np.maximum(ellipse(p, 0, rim, cap, high), p.y - rim)
    foot = polygon(p, [(-stem, rim), (stem, rim), (stem + flare, 0.88), (-stem - flare, 0.88)]) - 0.04
    return [
        Part(foot, CREAM),
        Part(ellipse(p, 0, rim, cap, 0.14), look.accent),
        Part(dome - 0.03, look.coat),
        *_eyes(p, 0, 0.42, stem * 0.5, 0.07),
        *look.badge_at(0, rim - high * 0.5, 0.24),
    ]


SHAPES: dict[str, Shape] = {
    "toy": toy,
    "robot": robot,
    "house": house,
    "fish": fish,
    "flower": flower,
    "cup": cup,
    "car": car,
    "bird": bird,
    "boat": boat,
    "mushroom": mushroom,
}
BADGES: dict[str, Callable[[Points, float, float, float], Field]] = {
    "star": star,
    "heart": lambda p, x, y, r: union(
        circle(p, x - r * 0.42, y - r * 0.25, r * 0.5),
        circle(p, x + r * 0.42, y - r * 0.25, r * 0.5),
        polygon(p, [(x - r * 0.86, y - r * 0.02), (x + r * 0.86, y - r * 0.02), (x, y + r)]),
    ),
    "ring": lambda p, x, y, r: ring(circle(p, x, y, r * 0.7), r * 0.45),
    "cross": lambda p, x, y, r: union(box(p, x, y, r * 0.95, r * 0.3), box(p, x, y, r * 0.3, r * 0.95)),
    "diamond": lambda p, x, y, r: polygon(p, [(x, y - r), (x + r * 0.8, y), (x, y + r), (x - r * 0.8, y)]),
}
