"""What every source of photos has: names, bytes, sidecar files, and what it does not use."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import NamedTuple

from dreamlit.datamodules.images import SUFFIXES
from dreamlit.errors import DataError

SIDECAR_SUFFIXES = frozenset((".txt", ".caption", ".json", ".jsonl", ".csv", ".parquet", ".yaml", ".yml", ".md"))
JUNK_NAMES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx"))
CAMERA_SUFFIXES = frozenset((".heic", ".heif", ".avif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".psd"))


class Finding(NamedTuple):
    """A file that is not used, and why."""

    name: str
    reason: str


@dataclasses.dataclass
class Listing:
    """What a source holds."""

    files: dict[str, tuple[str | bytes, int, int]] = dataclasses.field(default_factory=dict)
    """Images and sidecars: relative name -> (file on disk, offset, size); size -1 is the whole file."""
    ignored: list[Finding] = dataclasses.field(default_factory=list)
    """Files that do not belong to the data set, such as `.DS_Store`."""
    broken: list[Finding] = dataclasses.field(default_factory=list)
    """What should be an image and cannot be one, such as a link that leads nowhere."""

    def file(self, name: str, where: str | bytes, offset: int = 0, size: int = -1) -> None:
        """Takes one regular file in: an image, a sidecar, or something else that is ignored."""
        suffix = suffix_of(name)
        if suffix in SUFFIXES or suffix in SIDECAR_SUFFIXES:
            self.files[name] = where, offset, size
        elif suffix in CAMERA_SUFFIXES:
            self.ignored.append(Finding(name, f"{suffix} is not read here; save it as JPEG or PNG to use it"))
        else:
            self.ignored.append(Finding(name, f"no image suffix ({suffix or 'none'})"))

    def unusable(self, name: str, reason: str) -> None:
        """Takes in what cannot be opened: broken where it looks like an image, otherwise ignored."""
        (self.broken if suffix_of(name) in SUFFIXES else self.ignored).append(Finding(name, reason))


class Source:
    """A read-only collection of images, with sidecar files of the same stem. It is listed once, on first use."""

    def __init__(self, where: str) -> None:
        self.where = where

    def names(self) -> list[str]:
        """The images' names, sorted by code points."""
        return sorted(name for name in self.listing.files if suffix_of(name) in SUFFIXES)

    @property
    def ignored(self) -> list[Finding]:
        return self.listing.ignored

    @property
    def broken(self) -> list[Finding]:
        return self.listing.broken

    def read(self, name: str) -> bytes:
        """The bytes of a file of this source.

        Raises:
            DataError: when it is not there or cannot be read whole.
        """
        path, offset, size = self._locate(name)
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{name}: cannot be read from {self.where} ({error.strerror})") from error
        if 0 <= size != len(data):
            raise DataError(f"{name}: {os.fsdecode(path)} ends in the middle of it. Fetch the shard again")
        return data

    def sidecar(self, name: str, suffix: str) -> bytes | None:
        """The file of the same stem as image `name` with another suffix (in any case), or None if there is none."""
        found = self.sidecar_name(name, suffix)
        return None if found is None else self.read(found)

    def sidecar_name(self, name: str, suffix: str) -> str | None:
        """The name of that file."""
        return self._by_stem.get((stem_of(name), suffix.lower()))

    @functools.cached_property
    def listing(self) -> Listing:
        return self._list()

    @functools.cached_property
    def _by_stem(self) -> dict[tuple[str, str], str]:
        names = sorted(self.listing.files, reverse=True)  # of a.txt and a.TXT the first in code points counts
        return {(stem_of(name), suffix_of(name)): name for name in names}

    def _list(self) -> Listing:
        raise NotImplementedError

    def _locate(self, name: str) -> tuple[str | bytes, int, int]:
        if name not in self.listing.files:
            raise DataError(f"{name}: is not in {self.where}")
        return self.listing.files[name]

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("listing", "_by_stem")}


def suffix_of(name: str) -> str:
    """The suffix of a relative name, in lower case: `x/B.JPG` -> `.jpg`."""
    return pathlib.PurePosixPath(name).suffix.lower()


def stem_of(name: str) -> str:
    """The relative name without its suffix: `x/B.JPG` -> `x/B`. Captions and masks are paired by it."""
    return name[: len(name) - len(pathlib.PurePosixPath(name).suffix)]


def why_junk(part: str) -> str | None:
    """Why a file or folder of this name is never looked at."""
    if part.startswith("._"):
        return "metadata that macOS leaves on foreign disks"
    if part.startswith("."):
        return "hidden"
    return "left by the operating system" if part.lower() in JUNK_NAMES else None


def disk_path(path: str | os.PathLike) -> bytes:
    """The bytes of a path as UTF-8, also where the locale says otherwise (`LC_ALL=C`)."""
    return os.fspath(path).encode("utf-8", "surrogateescape")


def printable(name: str) -> str:
    """The name with `?` for bytes that are no UTF-8; a name that is UTF-8 comes back as it is."""
    return name if name.isascii() else name.encode("utf-8", "replace").decode()
