"""Names ranked by how like the photos of a subject they are, for a name that the model knows already."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from dreamlit.encoders import ImageEncoder
from dreamlit.errors import DataError
from dreamlit.plots import photo_files, read_photo


def read_names(file: pathlib.Path) -> list[str]:
    """The names of a text file, one on each line. Errors: `DataError` when there is none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--names {file} cannot be read ({error}); give a text with a name on each line") from None
    names = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if not names:
        raise DataError(f"--names {file} holds no name; give a name on each line")
    return names


def matched(names: Sequence[str], photos: pathlib.Path, encoder: str) -> list[tuple[float, str]]:
    """(mean cosine of "a photo of NAME" with the photos, name), the best first.

    Raises:
        DataError: when the folder holds no photo, or one cannot be read.
        ModelError: when the encoder cannot be used, or reads no text.
    """
    paths = photo_files(photos) if photos.is_dir() else []
    if not paths:
        raise DataError(f"--photos {photos} holds no image; give the folder of the subject's photos")
    reader = ImageEncoder(encoder)
    texts = reader.embed_texts([f"a photo of {name}" for name in names])
    cosines = (texts @ reader.embed_images([read_photo(path) for path in paths]).T).mean(dim=1).tolist()
    return sorted(zip(cosines, names, strict=True), key=lambda pair: (-pair[0], pair[1]))
