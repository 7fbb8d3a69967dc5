"""Where photos lie: a folder, or tar shards. Read-only: nothing is ever written beside the photos.

A source knows images by their relative name with forward slashes. Two names that differ in any code point are two
images, also when they look alike (é as one character or as two).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from dreamlit.datamodules.listing import Finding, Listing, Source, disk_path, printable, stem_of, suffix_of, why_junk
from dreamlit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dreamlit.datamodules.config_entries import ConditioningDataset, ImageDataset

__all__ = ["Finding", "LocalSource", "Source", "open_source", "stem_of", "suffix_of"]


class LocalSource(Source):
    """A folder, searched in depth. Links are followed; a folder that is reached twice is read once.

    Args:
        where: The folder.

    Raises:
        DataError: when it is not a folder.
    """

    def __init__(self, where: str) -> None:
        super().__init__(os.fspath(where))
        self._root = disk_path(where)
        if not os.path.isdir(self._root):
            kind = "is not a folder" if os.path.exists(self._root) else "does not exist"
            raise DataError(f"instance_data_dir {self.where} {kind}")

    def _locate(self, name: str) -> tuple[str | bytes, int, int]:
        return (
            os.path.join(self._root, disk_path(name)),
            0,
            -1,
        )  # a worker that reads one photo need not list the folder

    def _list(self) -> Listing:
        listing, seen = Listing(), set()
        real, linked = [""], []  # linked folders wait, so that a folder keeps its own name where it has one
        while real or linked:
            folder = real.pop() if real else linked.pop(0)
            path = os.path.join(self._root, disk_path(folder))
            identity = os.stat(path)
            if (identity.st_dev, identity.st_ino) in seen:
                listing.ignored.append(Finding(folder, "is a link to a folder that is already read"))
                continue
            seen.add((identity.st_dev, identity.st_ino))
            try:
                entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            except OSError as error:
                listing.broken.append(Finding(folder or ".", f"the folder cannot be opened ({error.strerror})"))
                continue
            for entry in entries:
                own = entry.name.decode("utf-8", "surrogateescape")
                name = f"{folder}/{own}" if folder else own
                if self._is_folder(entry, name, listing):
                    (linked if entry.is_symlink() else real).append(name)
            linked.sort()
        return listing

    def _is_folder(self, entry: os.DirEntry[bytes], name: str, listing: Listing) -> bool:
        """Takes a file into the listing; True for a folder that is to be searched."""
        reason = why_junk(name.rpartition("/")[2])
        if reason:
            listing.ignored.append(Finding(printable(name), reason))
            return False
        try:
            mode = os.stat(entry.path).st_mode
        except OSError as error:
            loop = error.errno == errno.ELOOP
            why = "is a link that leads to itself" if loop else f"is a link that leads nowhere ({_target(entry)})"
            listing.unusable(printable(name), why if entry.is_symlink() else f"cannot be opened ({error.strerror})")
            return False
        if printable(name) != name:
            listing.broken.append(Finding(printable(name), "its name is not UTF-8. Rename it"))
        elif stat.S_ISDIR(mode):
            return True
        elif not stat.S_ISREG(mode):
            listing.unusable(name, "is a pipe, socket or device, not a file")
        else:
            listing.file(name, entry.path)
        return False


def open_source(spec: ImageDataset | ConditioningDataset, download_dir: str | os.PathLike | None = None) -> Source:
    """The source of a dataset entry.

    Args:
        spec: The entry; `type` and `instance_data_dir` say where its files lie.
        download_dir: Where shards from `http(s)` URLs are kept, so that they are fetched once. Without it such URLs
            are refused.

    Raises:
        DataError: when a folder or shard is missing or a download fails.
        ConfigError: when a URL or brace range cannot be understood.
    """
    if spec.type == "local":
        return LocalSource(spec.instance_data_dir)
    if spec.type == "webdataset":
        # urllib and tarfile cost time that folders need not pay
        from dreamlit.datamodules.shard_urls import local_shards
        from dreamlit.datamodules.tar_source import TarSource

        return TarSource(spec.instance_data_dir, local_shards(spec.instance_data_dir, download_dir))
    raise ConfigError(f"dataset {spec.id!r}: type {spec.type!r} is not known. Allowed: local, webdataset")


def _target(entry: os.DirEntry[bytes]) -> str:
    try:
        return f"to {printable(os.readlink(entry.path).decode('utf-8', 'surrogateescape'))}"
    except OSError as error:
        return error.strerror or "unreadable"
