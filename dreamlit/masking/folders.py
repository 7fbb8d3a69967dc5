"""Which photos get which mask files, and that the folders have nothing to do with each other."""

from __future__ import annotations

import os
import pathlib
from collections import defaultdict

from dreamlit.datamodules.listing import stem_of
from dreamlit.datamodules.sources import LocalSource
from dreamlit.errors import ConfigError, DataError, Faults
from dreamlit.masking.record import listed


def photos_of(folder: str, option: str = "--input_dir") -> LocalSource:
    """The images of a folder, searched in depth as the trainer does it. Errors: `DataError` if there are none."""
    place = pathlib.Path(folder)
    if not place.is_dir():
        raise DataError(
            f"{option} {folder}: {'a file; give a folder' if place.exists() else 'there is no such folder'}"
        )
    source = LocalSource(folder)
    if not source.names():
        found = listed(f"{finding.name} ({finding.reason})" for finding in [*source.broken, *source.ignored])
        raise DataError(f"{option} {folder}: holds no images" + (f"; not used: {found}" if found else ""))
    return source


def apart(source: LocalSource, output: pathlib.Path) -> None:
    """Refuses a folder of masks that is, holds or lies in the folder of photos, also by way of links.

    Raises:
        ConfigError: when it does: the trainer would take masks for photos, and nothing is written beside photos.
    """
    photos, masks = os.path.realpath(source.where), os.path.realpath(output)
    through_links = (os.path.realpath(path) for path, *_ in source.listing.files.values())
    if any(within(os.fsdecode(path), masks) for path in (photos, *through_links)) or within(masks, photos):
        raise ConfigError(
            f"--output_dir {output} and --input_dir {source.where} overlap; masks need a folder of their own, "
            f"for example {photos}_masks"
        )


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def mask_names(source: LocalSource) -> dict[str, str]:
    """Image name -> the name of its mask: same relative path and stem, by which the trainer pairs them.

    Raises:
        DataError: when two images would share a mask.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in source.names():
        by_stem[stem_of(name)].append(name)
    faults = Faults(
        "these images would share a mask, which goes by the name without its suffix; rename them", DataError
    )
    for names in by_stem.values():
        if len(names) > 1:
            faults.add(", ".join(names))
    faults.raise_if_any()
    return {name: f"{stem_of(name)}.png" for name in source.names()}


def sheet_path(output: pathlib.Path, page: int) -> pathlib.Path:
    """Beside the folder of masks: in it, the sheet would be a mask without an image."""
    full = pathlib.Path(os.path.abspath(output))
    return full.with_name(f"{full.name}-sheet.png" if page == 0 else f"{full.name}-sheet-{page + 1}.png")
