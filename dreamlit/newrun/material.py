"""What a run is to be made of: the model and its family, the photos and their sizes."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from typing import TYPE_CHECKING

from dreamlit.errors import DataError, Faults, ModelError

if TYPE_CHECKING:
    from dreamlit.families import Family


@dataclasses.dataclass(frozen=True)
class Photos:
    """A folder of images."""

    folder: pathlib.Path
    sides: tuple[int, ...]
    """Of each image, the side of the square of its area, in pixels; smallest first."""
    captioned: bool
    """Whether each has a text file beside it."""

    def __len__(self) -> int:
        return len(self.sides)

    @property
    def usual_side(self) -> int:
        return int(statistics.median(self.sides))


def read_photos(folder: str, option: str) -> Photos:
    """Look at the images of a folder. Errors: `DataError` with all files that cannot be read."""
    from PIL import Image

    from dreamlit.datamodules.images import SUFFIXES
    from dreamlit.datamodules.listing import why_junk

    place = pathlib.Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(f"{option} {folder}: no such folder; give the folder that the images are in")
    found = (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = sorted(path for path in found if not any(map(why_junk, path.relative_to(place).parts)))
    if not files:
        raise DataError(f"{option} {folder}: there is no image in it (of {', '.join(sorted(SUFFIXES))})")
    faults, sides = Faults(f"{option} {folder}: files that are no images", DataError), []
    for path in files:
        try:
            with Image.open(path) as image:
                sides.append(round((image.width * image.height) ** 0.5))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            faults.add(f"{path.name}: {error}")
    faults.raise_if_any()
    return Photos(pathlib.Path(folder), tuple(sorted(sides)), all(p.with_suffix(".txt").is_file() for p in files))


def find_family(model: str) -> Family:
    """The family that a model is of, found by its `model_index.json` or the names in its single file; checked.

    Errors: `ModelError`.
    """
    from dreamlit.families.checks import concrete_families
    from dreamlit.families.files import ModelFiles, read_header

    files = ModelFiles(model)
    if fault := files.fault():
        raise ModelError(f"--model: {fault}")
    if files.is_file:
        names = [name for name in read_header(files.local) if name != "__metadata__"]
        marks = {kind: tuple(kind.single_file_layouts) for kind in concrete_families() if kind.single_file_layouts}
        kinds = [kind for kind, own in marks.items() if any(name.startswith(own) for name in names)]
        what = "tensors"
    else:
        what = str(files.index.get("_class_name"))
        kinds = [kind for kind in concrete_families() if kind.pipeline_class == what]
    if not kinds:
        known = ", ".join(kind.__name__ for kind in concrete_families())
        raise ModelError(f"--model {model}: no family loads its {what}. Families: {known}")
    family = kinds[0](model)
    family.check()
    return family
