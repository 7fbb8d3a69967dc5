"""Tar shards as a source of photos."""

from __future__ import annotations

import functools
import pathlib
import tarfile

from dreamlit.datamodules.images import SUFFIXES
from dreamlit.datamodules.listing import Finding, Listing, Source, printable, suffix_of, why_junk
from dreamlit.errors import DataError, Faults

TAR_BLOCK = 512


class TarSource(Source):
    """Tar shards of images with sidecar files, as WebDataset writes them. Members are found once and read by offset.

    Args:
        where: What the shards were called in the configuration; for messages.
        shards: Uncompressed tar files on disk.
    """

    def __init__(self, where: str, shards: list[str]) -> None:
        super().__init__(where)
        self.shards = shards

    def _list(self) -> Listing:
        listing, faults, first = Listing(), Faults(f"tar shards of {self.where} cannot be used", DataError), {}
        for shard in self.shards:
            try:
                members = tar_members(shard)
            except DataError as error:
                faults.add(str(error))
                continue
            for member in members:
                name = member.name.removeprefix("./")
                if name in first and suffix_of(name) in SUFFIXES:
                    faults.add(f"{name} is both in {first[name]} and in {shard}. Give each picture a name of its own")
                first[name] = shard
                self._take(member, name, shard, listing)
        faults.raise_if_any()
        return listing

    def _take(self, member: tarfile.TarInfo, name: str, shard: str, listing: Listing) -> None:
        reason = next(filter(None, map(why_junk, pathlib.PurePosixPath(name).parts)), None)
        if reason:
            listing.ignored.append(Finding(printable(name), reason))
        elif printable(name) != name:
            listing.broken.append(Finding(printable(name), "its name is not UTF-8. Rename it"))
        elif not member.isreg() or member.issparse():
            listing.unusable(name, "is a link or special member, not a file")
        else:
            listing.file(name, shard, member.offset_data, member.size)


def tar_members(shard: str) -> list[tarfile.TarInfo]:
    """The members of an uncompressed tar file, folders left out, after a check that the file is whole.

    `tarfile` itself ends silently at a damaged header and at the first end mark of joined archives.

    Raises:
        DataError: what is wrong with the shard.
    """
    try:
        with tarfile.open(shard, "r:", encoding="utf-8") as archive:
            members = archive.getmembers()
            end = archive.offset
    except OSError as error:
        raise DataError(f"{shard}: cannot be opened ({error.strerror})") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        hint = "is compressed; unpack it to a plain .tar first" if _is_compressed(shard) else f"is damaged ({error})"
        raise DataError(f"{shard}: {hint}") from error
    with open(shard, "rb") as file:
        file.seek(end)  # where `tarfile` found no further header: there the end mark has to be
        tail = file.read(TAR_BLOCK)
        if len(tail) < TAR_BLOCK or tail.strip(b"\0"):
            raise DataError(f"{shard}: is cut off or damaged after {len(members)} members. Fetch it again")
        if any(block.strip(b"\0") for block in iter(functools.partial(file.read, 1 << 20), b"")):
            raise DataError(f"{shard}: goes on after its end mark (archives joined together?). Write it anew")
    return [member for member in members if not member.isdir()]


def _is_compressed(shard: str) -> bool:
    with open(shard, "rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
