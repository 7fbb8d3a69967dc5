"""Looking after cache folders: `dreamlit cache verify DIR` and `dreamlit cache gc DIR`. No torch, no model."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Collection
from typing import NamedTuple

from dreamlit.datamodules.shard_format import (
    Entry,
    Index,
    index_path,
    parse_index,
    read_bytes,
    read_index,
    scan,
    shard_paths,
)
from dreamlit.datamodules.shard_parts import leftovers, recover
from dreamlit.datamodules.shards import ShardFolder
from dreamlit.errors import DataError


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. `damaged` and `remarks` are lines for the user; only damage makes `ok` false."""

    shards: int
    entries: int
    size_bytes: int
    damaged: list[str]
    remarks: list[str]

    @property
    def ok(self) -> bool:
        return not self.damaged

    def __str__(self) -> str:
        head = f"{self.shards} shards, {self.entries} entries, {self.size_bytes / 2**20:.1f} MiB: "
        state = "all whole" if self.ok else f"{len(self.damaged)} damaged, which the next run encodes again"
        return "\n".join([head + state, *(f"  - {line}" for line in [*self.damaged, *self.remarks])])


def verify(folder: str | os.PathLike[str]) -> VerifyReport:
    """Read every entry of a cache folder and compare it with its checksum. Changes nothing.

    Raises:
        DataError: the folder does not exist or cannot be read.
    """
    path = existing(folder)
    shards = shard_paths(path)
    damaged: list[str] = []
    remarks = [f"{left.name}: left by a run that was killed; the next run recovers it" for left in leftovers(path)]
    entries = 0
    for shard in shards:
        parsed = parse_index(shard)
        index = parsed[0] if parsed else {}
        if read_index(shard) is None:
            remarks.append(
                f"{index_path(shard).name}: missing, damaged or of another tar; it is made again when needed"
            )
        found = scan(shard)
        entries += len({**found, **index})
        damaged += _damage(shard, index, found)
    return VerifyReport(len(shards), entries, sum(shard.stat().st_size for shard in shards), damaged, remarks)


def _damage(shard: pathlib.Path, index: Index, found: Index) -> list[str]:
    """A line for each entry that is not whole, and one for what the tar's own headers do not show."""
    lines = [
        f"{shard.name}: the entry {key} is not what was written"
        for key, entry in {**found, **index}.items()
        if read_bytes(shard, entry) is None
    ]
    hidden = len(index.keys() - found.keys())
    if hidden and not lines:
        lines.append(f"{shard.name}: tar headers are damaged, other tools cannot read {hidden} entries")
    if not index and not found:
        lines.append(f"{shard.name}: nothing in it can be read")
    return lines


class Removal(NamedTuple):
    """An entry that `gc` removes, and why."""

    shard: str
    key: str
    size_bytes: int
    reason: str


@dataclasses.dataclass(frozen=True)
class GcReport:
    """What `gc` removed, or would remove."""

    kept: int
    removed: list[Removal]
    leftovers: list[str]
    dry_run: bool

    @property
    def freed_bytes(self) -> int:
        return sum(removal.size_bytes for removal in self.removed)

    def __str__(self) -> str:
        verb = "would be removed" if self.dry_run else "removed"
        lines = [f"{r.shard}/{r.key}: {r.reason} ({r.size_bytes / 2**10:.0f} KiB)" for r in self.removed]
        lines += [f"{name}: left by a run that was killed" for name in self.leftovers]
        head = f"{len(self.removed)} entries ({self.freed_bytes / 2**20:.1f} MiB) {verb}, {self.kept} kept"
        return "\n".join([head, *(f"  - {line}" for line in lines)])


def gc(folder: str | os.PathLike[str], keep: Collection[str], dry_run: bool = False) -> GcReport:
    """Remove the entries of a cache folder that are not in `keep`, second copies, and damaged entries.

    Shards that hold both are written anew before the old one goes, so that an interruption loses nothing that is kept.
    Files that dreamlit did not write are never touched, and shards that a run is writing now are left to it.

    Args:
        folder: The cache folder.
        keep: Keys to keep; see `Caches.keys`.
        dry_run: Only list.

    Raises:
        DataError: the folder does not exist or cannot be written, or there is nothing to keep.
    """
    path = existing(folder)
    if not keep and not dry_run:
        raise DataError(
            f"{path}: nothing was named to keep, so everything would go. Name the configurations whose entries "
            "are kept, or delete the folder yourself"
        )
    left = [item.name for item in leftovers(path)]
    if not dry_run:
        recover(path)
    seen: set[str] = set()
    removed: list[Removal] = []
    for shard in shard_paths(path):
        with contextlib.suppress(FileNotFoundError):  # tidied away by another process meanwhile
            removed += _tidy(shard, keep, seen, dry_run)
    return GcReport(len(seen), removed, left, dry_run)


def _tidy(shard: pathlib.Path, keep: Collection[str], seen: set[str], dry_run: bool) -> list[Removal]:
    """Remove what does not belong in one shard; `seen` holds the keys kept so far and takes in this shard's."""
    kept: Index = {}
    removed: list[Removal] = []
    for key, entry in entries_of(shard).items():
        reason = _reason(shard, key, entry, keep, seen)
        if reason:
            removed.append(Removal(shard.name, key, entry.size, reason))
        else:
            kept[key] = entry
    seen.update(kept)
    if not dry_run and (removed or not kept):
        _rewrite(shard, kept)
    return removed


def entries_of(shard: pathlib.Path) -> Index:
    """The entries of a shard by its index, or by the tar where the index cannot be used. Writes nothing."""
    index = read_index(shard)
    return scan(shard) if index is None else index


def _reason(shard: pathlib.Path, key: str, entry: Entry, keep: Collection[str], seen: set[str]) -> str:
    if key not in keep:
        return "not used by what is kept"
    if key in seen:
        return "a second copy"
    return "damaged" if read_bytes(shard, entry) is None else ""


def _rewrite(shard: pathlib.Path, kept: Index) -> None:
    with ShardFolder(shard.parent).writer() as writer:
        for key, entry in kept.items():
            data = read_bytes(shard, entry)
            if data is not None:
                writer.add(key, data)
    try:
        shard.unlink(missing_ok=True)
        index_path(shard).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{shard}: cannot be removed ({error.strerror}). Make the folder writable") from error


def existing(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a cache folder that has to be there."""
    path = pathlib.Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder. Give a cache folder, as named by cache_dir or cache_dir_vae")
    return path
