"""Draws the photos of a first run: one toy on five backgrounds with its masks, and other toys as regularisation images.

    python scripts/make_demo_photos.py --output photos

writes photos/subject, photos/subject_masks and photos/class. The same pictures every time.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import random

from PIL import Image, ImageDraw

SCALE = 4  # drawn larger and reduced, for smooth edges
SIZES = [(256, 256), (320, 240), (240, 320), (256, 256), (288, 256)]
Colour = tuple[int, int, int]


def background(size: tuple[int, int], draw: random.Random) -> Image.Image:
    """A vertical gradient between two colours with a horizon."""
    width, height = size
    top, bottom = (tuple(draw.randrange(60, 230) for _ in range(3)) for _ in range(2))
    image = Image.new("RGB", size)
    pen = ImageDraw.Draw(image)
    for y in range(height):
        share = y / height
        pen.line([(0, y), (width, y)], fill=tuple(round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True)))
    floor = tuple(draw.randrange(40, 200) for _ in range(3))
    pen.rectangle([0, round(height * 0.72), width, height], fill=floor)
    return image


def toy(pen: ImageDraw.ImageDraw, box: tuple[float, float, float], body: Colour, badge: Colour, ears: int) -> None:
    """A round toy with ears, eyes and a star badge; `box` is centre x, centre y and radius in pixels."""
    x, y, r = box
    for k in range(ears):
        angle = math.pi * (k + 1) / (ears + 1)
        ear_x, ear_y = x - r * 1.1 * math.cos(angle), y - r * 1.1 * math.sin(angle)
        pen.ellipse([ear_x - r / 3, ear_y - r / 3, ear_x + r / 3, ear_y + r / 3], fill=badge)
    pen.ellipse([x - r, y - r, x + r, y + r], fill=body)
    for side in (-1, 1):
        eye = x + side * r * 0.35
        pen.ellipse([eye - r * 0.14, y - r * 0.4, eye + r * 0.14, y - r * 0.12], fill=(255, 255, 255))
        pen.ellipse([eye - r * 0.06, y - r * 0.32, eye + r * 0.06, y - r * 0.2], fill=(20, 20, 20))
    star = []
    for k in range(10):
        reach = r * (0.42 if k % 2 == 0 else 0.18)
        star.append((x + reach * math.sin(math.pi * k / 5), y + r * 0.4 - reach * math.cos(math.pi * k / 5)))
    pen.polygon(star, fill=badge)


def scene(size: tuple[int, int], draw: random.Random, body: Colour, badge: Colour, ears: int) -> tuple:
    """A photo of a toy and its mask (white where the toy is)."""
    large = (size[0] * SCALE, size[1] * SCALE)
    radius = min(large) * draw.uniform(0.2, 0.27)
    box = (large[0] * draw.uniform(0.38, 0.62), large[1] * draw.uniform(0.45, 0.58), radius)
    photo, mask = background(large, draw), Image.new("RGB", large)
    toy(ImageDraw.Draw(photo), box, body, badge, ears)
    toy(ImageDraw.Draw(mask), box, (255, 255, 255), (255, 255, 255), ears)
    mask = mask.convert("L").point(lambda value: 255 if value else 0)
    return photo.resize(size, Image.Resampling.LANCZOS), mask.resize(size, Image.Resampling.BOX)


def colour(draw: random.Random) -> Colour:
    return draw.randrange(40, 240), draw.randrange(40, 240), draw.randrange(40, 240)


def make(output: pathlib.Path) -> None:
    for name in ("subject", "subject_masks", "class"):
        (output / name).mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number, size in enumerate(SIZES):
        photo, mask = scene(size, draw, (214, 92, 40), (250, 214, 70), ears=3)
        photo.save(output / "subject" / f"toy_{number}.png")
        mask.save(output / "subject_masks" / f"toy_{number}.png")
    for number in range(8):
        photo, _ = scene(SIZES[number % len(SIZES)], draw, colour(draw), colour(draw), ears=draw.choice([0, 2]))
        photo.save(output / "class" / f"other_{number}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("photos"), help="folder to write to")
    folder = parser.parse_args().output
    make(folder)
    print(f"photos: {folder}")
