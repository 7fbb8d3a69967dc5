"""Photos as they are read, and images before and after as a labelled grid."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont


def photo_files(folder: pathlib.Path | None) -> list[pathlib.Path]:
    """The images of a folder by name; none of its subfolders, and none where there is no folder."""
    from dreamlit.datamodules.images import SUFFIXES

    found = sorted(folder.iterdir()) if folder else []
    return [path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]


def read_photo(path: pathlib.Path) -> Image:
    """A photo, upright and in sRGB, transparent parts on white.

    Raises:
        DataError: when it cannot be read whole.
    """
    from PIL import Image as pillow

    from dreamlit.datamodules.images import decode

    return pillow.fromarray(decode(path.read_bytes(), path.name).pixels)


@dataclasses.dataclass(frozen=True)
class Row:
    """Images of one prompt, of the base model and of the trained one, in the same order of seeds."""

    caption: str
    before: Sequence[Image]
    after: Sequence[Image]


MARGIN, GAP, TEXT_PX, LEAST_CELL_PX = 8, 32, 16, 112


def before_after(
    rows: Sequence[Row], photos: Sequence[Image] = (), heads: tuple[str, str] = ("before", "after"), cell_px: int = 384
) -> Image:
    """One picture: a row for each prompt with its text above, left half before, right half after, photos first.

    Args:
        rows: The prompts' images, at least one row.
        photos: The subject's photos; as many as a row holds are shown, and the caption says how many there are.
        heads: What stands over the halves.
        cell_px: Longest side of an image in the grid; larger ones are scaled down, smaller ones stay as they are.
    """
    from PIL import Image as pillow
    from PIL import ImageDraw

    half = max(max(len(row.before), len(row.after)) for row in rows)
    small = [([fitted(i, cell_px) for i in row.before], [fitted(i, cell_px) for i in row.after]) for row in rows]
    every = [image for pair in small for side in pair for image in side]
    cell = max(LEAST_CELL_PX, *(i.width for i in every)), max(i.height for i in every)
    places = columns(half, cell[0])
    width = places[-1] + cell[0] + MARGIN
    font = text_font()

    strips: list[tuple[str, list[tuple[int, Image]]]] = []
    if photos:
        shown = [fitted(photo, *cell) for photo in photos[: 2 * half]]
        count = f"{len(shown)} of {len(photos)}" if len(shown) < len(photos) else f"{len(photos)}"
        strips.append((f"photos of the subject ({count})", list(zip(places, shown, strict=False))))
    for row, (left, right) in zip(rows, small, strict=True):
        strips.append((row.caption, [*zip(places, left, strict=False), *zip(places[half:], right, strict=False)]))

    captions = [wrapped(text, font, width - 2 * MARGIN) for text, _ in strips]
    heights = [len(lines) * line_px() + cell[1] + 2 * MARGIN for lines in captions]
    picture = pillow.new("RGB", (width, line_px() + 2 * MARGIN + sum(heights)), "white")
    pen = ImageDraw.Draw(picture)
    top = MARGIN
    for number, (lines, (_, cells), height) in enumerate(zip(captions, strips, heights, strict=True)):
        if number == bool(photos):  # the photos above belong to neither half
            write(pen, [heads[0]], (places[0], top), font, "firebrick")
            write(pen, [heads[1]], (places[half], top), font, "darkgreen")
            top += line_px() + MARGIN
        write(pen, lines, (MARGIN, top), font)
        for x, image in cells:
            picture.paste(image, (x, top + len(lines) * line_px()))
        top += height
    return picture


def columns(half: int, cell_width: int) -> list[int]:
    """Left edges in pixels of `half` cells, a gap, and `half` cells again."""
    step = cell_width + MARGIN
    return [MARGIN + n * step + (GAP if n >= half else 0) for n in range(2 * half)]


def fitted(image: Image, width: int, height: int | None = None) -> Image:
    """The image as RGB, scaled down where it is larger than the box; its shape is kept."""
    from PIL import Image as pillow

    image = image.convert("RGB")
    share = min(1.0, width / image.width, (height or width) / image.height)
    if share == 1.0:
        return image
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, pillow.Resampling.LANCZOS)


def text_font() -> FreeTypeFont:
    """DejaVu Sans as matplotlib brings it: accents, Greek and Cyrillic, which Pillow's own font lacks."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", TEXT_PX)


def line_px() -> int:
    return TEXT_PX + 6


def wrapped(text: str, font: FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels; a word that is longer is cut. At least one line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        pieces = list(cut(word, font, width))
        lines = [*lines, *pieces] if lines[-1] else pieces
    return lines


def cut(word: str, font: FreeTypeFont, width: int) -> Iterable[str]:
    piece = ""
    for letter in word:
        if piece and font.getlength(piece + letter) > width:
            yield piece
            piece = ""
        piece += letter
    yield piece


def write(pen: ImageDraw, lines: Sequence[str], at: tuple[int, int], font: FreeTypeFont, colour: str = "black") -> None:
    for number, line in enumerate(lines):
        pen.text((at[0], at[1] + number * line_px()), line, fill=colour, font=font)
