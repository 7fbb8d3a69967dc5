"""A content-addressed store of small files in tar shards: many readers, many writers, safe against kill -9.

A folder holds complete shards and their indexes (`shard_format`). A shard being written is called `.tar.part` and is
locked by its writer; it gets its final name only when it is complete and on disk, so no reader ever sees half an entry.
What a killed writer left behind is recovered entry by entry, because every entry carries its own checksum.

Entries are bytes under a hexadecimal key. A key names its content, so an entry never changes and two copies are equal:
writers need not agree with each other, and of two copies the one in the older shard is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterable, Iterator

from dreamlit.datamodules.shard_format import (
    KEY,
    Entry,
    Index,
    load_index,
    read_bytes,
    shard_paths,
)
from dreamlit.datamodules.shard_parts import Part
from dreamlit.errors import DataError

# --- reading --------------------------------------------------------------------------------------------------------


class ShardFolder:
    """The shards of one folder as a mapping from key to bytes. Nothing is created before the first write.

    Copies, pickles and forks are cheap and independent: the object holds an index and no open file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = pathlib.Path(folder)
        self._indexes: dict[str, Index] = {}
        self._whole: set[tuple[str, str]] = set()
        self._damaged: set[tuple[str, str]] = set()
        self.refresh()

    def __reduce__(self) -> tuple[type, tuple[pathlib.Path]]:
        return type(self), (self.folder,)

    def refresh(self) -> None:
        """Take in shards that were added or removed since, by this process or another."""
        indexes: dict[str, Index] = {}
        for path in shard_paths(self.folder):
            with contextlib.suppress(FileNotFoundError):  # removed between listing and reading
                known = self._indexes.get(path.name)
                indexes[path.name] = load_index(path) if known is None else known
        self._indexes = indexes

    def places(self, key: str) -> Iterator[tuple[str, Entry]]:
        """The shards that hold a key and are not known to be damaged there, oldest first."""
        for name, index in self._indexes.items():
            entry = index.get(key)
            if entry is not None and (name, key) not in self._damaged:
                yield name, entry

    def __contains__(self, key: str) -> bool:
        return next(self.places(key), None) is not None

    def keys(self) -> set[str]:
        """All keys that can be asked for; what they hold has not been checked."""
        return {key for index in self._indexes.values() for key in index if key in self}

    def read(self, key: str) -> bytes | None:
        """The bytes of a key, checked against their checksum at the first read; None where they are missing or damaged.

        A damaged copy is forgotten, so that the key counts as missing and is built again.
        """
        for _ in range(8):
            try:
                return self._read_known(key)
            except FileNotFoundError:  # another process tidied the shard away: the entry may now stand elsewhere
                self.refresh()
            except OSError as error:
                raise DataError(f"{self.folder}: a cache shard cannot be read ({error.strerror})") from error
        return None

    def _read_known(self, key: str) -> bytes | None:
        for name, entry in self.places(key):
            place = (name, key)
            data = read_bytes(self.folder / name, entry, check=place not in self._whole)
            if data is not None:
                self._whole.add(place)
                return data
            self._damaged.add(place)
        return None

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Which of these keys have to be built, each once, in the order given. Reads and checks all that is there."""
        self._whole.clear()
        return [key for key in dict.fromkeys(keys) if self.read(key) is None]

    def writer(self, max_entries: int = 1024, max_bytes: int = 256 * 2**20) -> ShardWriter:
        """A context in which `add(key, data)` appends entries; they can be read after it, or once a shard is full."""
        return ShardWriter(self, max_entries, max_bytes)


# --- writing --------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Appends entries to a folder. On leaving, whatever the reason, the complete entries are kept.

    Raises:
        DataError: the folder cannot be written or the disk is full; what was complete by then is kept.
    """

    def __init__(self, store: ShardFolder, max_entries: int, max_bytes: int) -> None:
        self.store, self.max_entries, self.max_bytes = store, max_entries, max_bytes
        self.kept = 0
        self._part: Part | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def add(self, key: str, data: bytes) -> None:
        """Append one entry. `key` is lower-case hexadecimal; a key added twice to a shard is written once."""
        if not KEY.fullmatch(key):
            raise ValueError(f"the key {key!r} is not hexadecimal: 8 to 128 of 0-9 and a-f")
        try:
            if self._part is None:
                self.store.folder.mkdir(parents=True, exist_ok=True)
                self._part = Part.create(self.store.folder)
            if key not in self._part.entries:
                self._part.append(key, data)
        except OSError as error:
            with contextlib.suppress(DataError):
                self.finish()
            raise self._failure(error) from error
        if len(self._part.entries) >= self.max_entries or self._part.end >= self.max_bytes:
            self.finish()

    def finish(self) -> None:
        """Complete the shard in hand, so that its entries can be read."""
        part, self._part = self._part, None
        if part is None:
            return
        try:
            part.finish()
        except OSError as error:
            raise self._failure(error) from error
        self.kept += len(part.entries)
        self.store.refresh()

    def _failure(self, error: OSError) -> DataError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"the cache cannot be written ({error.strerror})"
        mend = "Free some space" if full else "Make the folder writable"
        return DataError(
            f"{self.store.folder}: {what}. Entries written and kept so far: {self.kept}. {mend}, or name another "
            "folder (cache_dir_vae for latents, cache_dir for texts), and start again: only what is missing is encoded"
        )
