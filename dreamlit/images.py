"""Images as files: PNG with the recipe inside, and grids."""

from __future__ import annotations

import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


def save_image(image: Image, path: pathlib.Path, recipe: str = "") -> pathlib.Path:
    """Writes a PNG whole or not at all; `recipe` is embedded as the text chunk `dreamlit`."""
    from PIL.PngImagePlugin import PngInfo

    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    if recipe:
        info.add_text("dreamlit", recipe)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(partial, format="PNG", pnginfo=info)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def recipe_text(path: pathlib.Path) -> str:
    """The recipe that `save_image` has embedded. Errors: `DataError` if there is none or the file is no image."""
    from PIL import Image as pillow

    from dreamlit.errors import DataError

    try:
        with pillow.open(path) as image:
            image.load()  # the text may stand behind the pixels
            text = image.info.get("dreamlit")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    if not isinstance(text, str):
        raise DataError(f"{path} holds no recipe; images of dreamlit do, unless another program has written them anew")
    return text


def save_grid(images: list[Image], path: pathlib.Path, columns: int = 1) -> pathlib.Path:
    """One picture of all images in rows of `columns`; each keeps its size, cells are as large as the largest."""
    from PIL import Image as pillow

    width, height = max(i.width for i in images), max(i.height for i in images)
    grid = pillow.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        grid.paste(image, (column * width, row * height))
    return save_image(grid, path)


def generate(pipeline: Any, prompt: str, seed: int, options: dict[str, Any]) -> Any:
    """One image; its noise is drawn on the CPU, so that every device starts from the same."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompt, generator=generator, **options).images[0]
