"""The grid of a preview: a line for each prompt and size, side by side what each model makes of it."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclasses.dataclass(frozen=True)
class Line:
    """One prompt in one size: the files of each model, in the same order of seeds."""

    caption: str
    files: dict[str, list[pathlib.Path]]


def grid(lines: list[Line], heads: dict[str, str], cell_px: int = 384) -> Image:
    """One picture of all lines; an image that is not there stays blank.

    Args:
        lines: At least one, each with as many files of each model as the others.
        heads: Model -> what stands over its columns, in the order of the columns.
        cell_px: Longest side of an image in the grid; larger ones are scaled down, smaller ones stay as they are.
    """
    from PIL import Image as pillow
    from PIL import ImageDraw

    from dreamlit.plots import GAP, LEAST_CELL_PX, MARGIN, line_px, text_font, wrapped, write

    rows = [[[cell(path, cell_px) for path in line.files[model]] for model in heads] for line in lines]
    every = [image for row in rows for part in row for image in part if image]
    cell_width = max([LEAST_CELL_PX, *(image.width for image in every)])
    count, font = max(len(part) for row in rows for part in row), text_font()
    part_px = count * (cell_width + MARGIN) + GAP
    width = MARGIN + len(heads) * part_px - GAP
    titles = [wrapped(text, font, part_px - GAP) for text in heads.values()]
    captions = [wrapped(line.caption, font, width - 2 * MARGIN) for line in lines]
    row_px = [max([1, *(image.height for part in row for image in part if image)]) for row in rows]
    top = MARGIN * 2 + max(map(len, titles)) * line_px()
    height = top + sum(len(c) * line_px() + px + 2 * MARGIN for c, px in zip(captions, row_px, strict=True))
    picture = pillow.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    for number, title in enumerate(titles):
        write(pen, title, (MARGIN + number * part_px, MARGIN), font, "darkgreen")
    for row, caption, px in zip(rows, captions, row_px, strict=True):
        write(pen, caption, (MARGIN, top), font)
        top += len(caption) * line_px()
        for number, part in enumerate(row):
            for place, image in enumerate(part):
                if image:
                    picture.paste(image, (MARGIN + number * part_px + place * (cell_width + MARGIN), top))
        top += px + 2 * MARGIN
    return picture


def cell(path: pathlib.Path, cell_px: int) -> Image | None:
    from PIL import Image as pillow

    from dreamlit.plots import fitted

    if not path.exists():
        return None
    with pillow.open(path) as image:
        return fitted(image, cell_px)
