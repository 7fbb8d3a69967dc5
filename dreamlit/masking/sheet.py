"""Contact sheets: every photo with what does not count darkened, to glance at before a run."""

from __future__ import annotations

import json
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamlit.datamodules.images import decode
from dreamlit.datamodules.sources import LocalSource
from dreamlit.errors import DataError
from dreamlit.images import recipe_text, save_image
from dreamlit.masking.finishing import area
from dreamlit.masking.folders import sheet_path
from dreamlit.masking.record import Line, digest

SIDE, CAPTION = 240, 34
COLUMNS, PER_PAGE = 6, 48
EDGE, ALARM = (0, 255, 120), (200, 30, 30)


def overlay(pixels: np.ndarray, mask: np.ndarray, side: int = SIDE) -> Image.Image:
    """A small picture of a photo: what counts as it is, the rest dark and grey, a green line between.

    Args:
        pixels: uint8 [H, W, 3].
        mask: uint8 [h, w], of the same aspect.
        side: The longer side of the result in pixels.
    """
    photo = Image.fromarray(pixels)
    photo.thumbnail((side, side))
    share = np.asarray(Image.fromarray(mask).resize(photo.size, Image.Resampling.BOX), np.float32)[..., None] / 255
    bright = np.asarray(photo, np.float32)
    dark = 0.4 * bright.mean(axis=2, keepdims=True)
    result = share * bright + (1 - share) * dark
    inside = np.pad(share[..., 0] >= 0.5, 1, mode="edge")
    middle = inside[1:-1, 1:-1]
    beside = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    result[middle & ~beside] = EDGE
    return Image.fromarray(result.round().astype(np.uint8))


def write_sheets(source: LocalSource, folder: pathlib.Path, lines: list[Line]) -> tuple[list[pathlib.Path], list[str]]:
    """Draws the pages that are missing or out of date, beside the folder of masks.

    A page that cannot be drawn costs no mask: it is told, and the others are drawn.

    Returns:
        The pages, and what went wrong.
    """
    pages, troubles = [], []
    for number, start in enumerate(range(0, len(lines), PER_PAGE)):
        path, shown = sheet_path(folder, number), lines[start : start + PER_PAGE]
        try:
            write_page(path, source, folder, shown)
            pages.append(path)
        except (DataError, OSError, ValueError) as error:  # ValueError: a font without the letters of a name
            troubles.append(f"no contact sheet {path}: {error}")
    return pages, troubles


def write_page(path: pathlib.Path, source: LocalSource, folder: pathlib.Path, lines: list[Line]) -> None:
    """One page; a page of these very masks stays. Errors: `DataError`, also for a file of someone else's."""
    stamp = json.dumps({"masks_sheet": digest(json.dumps(lines).encode())})
    if path.exists():
        told = recipe_text(path)
        if told == stamp:
            return
        if "masks_sheet" not in told:
            raise DataError("a file of this name is there that this command did not make")
    rows = -(-len(lines) // COLUMNS)
    columns = min(COLUMNS, len(lines))
    page = Image.new("RGB", (columns * SIDE, rows * (SIDE + CAPTION)), "white")
    for place, line in enumerate(lines):
        row, column = divmod(place, columns)
        page.paste(tile(source, folder, line), (column * SIDE, row * (SIDE + CAPTION)))
    save_image(page, path, stamp)


def tile(source: LocalSource, folder: pathlib.Path, line: Line) -> Image.Image:
    """SIDE x (SIDE + CAPTION): the overlay, the name, the share that counts or the first warning in red."""
    photo = decode(source.read(line["image"]), line["image"])
    with Image.open(folder / line["mask"]) as file:
        mask = np.asarray(file.convert("L"))
    small = overlay(photo.pixels, mask, SIDE - 4)
    result = Image.new("RGB", (SIDE, SIDE + CAPTION), "white")
    result.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    pen, font = ImageDraw.Draw(result), ImageFont.load_default(12)
    alarm = next(iter(line["warnings"]), "")
    pen.text((3, SIDE), fitting(pen, font, pathlib.PurePosixPath(line["image"]).name), "black", font)
    told = fitting(pen, font, alarm or f"{area(mask):.0%} counts")
    pen.text((3, SIDE + 16), told, ALARM if alarm else "black", font)
    return result


def fitting(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str) -> str:
    """A text cut so that it fits under its picture."""
    shown = text
    while shown and pen.textlength(shown, font) > SIDE - 6:
        shown = shown[:-4].rstrip(".") + "..." if len(shown) > 4 else ""
    return shown
