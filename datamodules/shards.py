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
import re
import secrets
import time
from collections.abc import Iterable, Iterator

from dreamlit.datamodules.shard_format import (
    BLOCK,
    KEY,
    Entry,
    Index,
    digest,
    index_path,
    load_index,
    read_bytes,
    record,
    scan,
    shard_paths,
    write_index,
)
from dreamlit.errors import DataError

try:
    import fcntl
except ImportError:  # no locks on this platform: leftovers are then recovered by age alone
    fcntl = None

INDEX_NAME = re.compile(r"dreamlit-[0-9a-f]{16}-[0-9a-f]{8}\.index(\.tmp-[0-9a-f]{8})?")
PART_NAME = re.compile(r"dreamlit-[0-9a-f]{16}-[0-9a-f]{8}\.tar\.part")
STALE_S = 3600.0  # an index without a shard may belong to a writer that is about to rename its shard
STALE_UNLOCKABLE_S = 86400.0  # without locks, only age tells a dead writer from a living one


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


def _try_lock(fd: int) -> bool | None:
    """Take the exclusive lock of an open file: False where another process has it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_abandoned(fd: int) -> bool:
    """Whether the writer of an open part file has died; if so the file is now locked by this process."""
    locked = _try_lock(fd)
    return time.time() - os.fstat(fd).st_mtime > STALE_UNLOCKABLE_S if locked is None else locked


def _is_at(fd: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


class Part:
    """A shard being written: an open, locked `.tar.part` file that ends with a complete entry at `end`."""

    def __init__(self, path: pathlib.Path, fd: int, entries: Index, end: int) -> None:
        self.path, self.fd, self.entries, self.end = path, fd, entries, end

    @classmethod
    def create(cls, folder: pathlib.Path) -> Part:
        """A new, empty part under a name that nobody has."""
        while True:
            path = folder / (_new_name() + ".part")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            if _try_lock(fd) is not False and _is_at(fd, path):
                return cls(path, fd, {}, 0)
            os.close(fd)  # another process took the new file for a leftover before it was locked, and removes it

    @classmethod
    def take_over(cls, path: pathlib.Path) -> Part | None:
        """The complete entries of a part whose writer has died; None where the writer lives or nothing is there."""
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError:
            return None
        if not _is_abandoned(fd) or not _is_at(fd, path):
            os.close(fd)
            return None
        entries = {key: entry for key, entry in scan(path).items() if read_bytes(path, entry) is not None}
        end = max((entry.offset + entry.size for entry in entries.values()), default=0)
        return cls(path, fd, entries, end + -end % BLOCK)

    def append(self, key: str, data: bytes) -> None:
        """Write one entry at the end; an entry counts only once it is written whole."""
        blocks, start = record(key, data)
        written = 0
        while written < len(blocks):
            written += os.pwrite(self.fd, memoryview(blocks)[written:], self.end + written)
        entry = Entry(self.end + start, len(data), digest(data))
        self.end += len(blocks)
        self.entries[key] = entry

    def finish(self) -> None:
        """Bring the part to disk and give it its final name; a part without entries is removed."""
        try:
            if self.entries:
                self._publish()
            else:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(self.fd)

    def _publish(self) -> None:
        os.ftruncate(self.fd, self.end)
        try:
            os.pwrite(self.fd, b"\0" * (2 * BLOCK), self.end)
        except OSError:  # the end mark is a courtesy to other tools: a full disk must not cost the entries
            os.ftruncate(self.fd, self.end)
        os.fsync(self.fd)
        # Named after the time of publishing, so that shards sort by it and readers agree on the oldest copy.
        shard = self.path.with_name(_new_name())
        with contextlib.suppress(OSError):  # an index can be made again at any time
            write_index(shard, self.entries, os.fstat(self.fd).st_size)
        os.rename(self.path, shard)
        _sync_folder(shard.parent)


def _new_name() -> str:
    return f"dreamlit-{time.time_ns():016x}-{secrets.token_hex(4)}.tar"


def _sync_folder(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems cannot; the data itself is already on disk
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


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


# --- leftovers ------------------------------------------------------------------------------------------------------


def leftovers(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files of writers that died: unfinished shards without a living writer, and indexes without a shard."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if INDEX_NAME.fullmatch(path.name):
            shard = path.with_name(path.name.partition(".")[0] + ".tar")
            orphan = path != index_path(shard) or not shard.exists()
            with contextlib.suppress(FileNotFoundError):
                if orphan and time.time() - path.stat().st_mtime > STALE_S:
                    found.append(path)
        elif PART_NAME.fullmatch(path.name) and not _has_writer(path):
            found.append(path)
    return found


def _has_writer(path: pathlib.Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return True
    try:
        return not _is_abandoned(fd)
    finally:
        os.close(fd)


def recover(folder: pathlib.Path) -> int:
    """Turn what dead writers left into proper shards and remove the rest; the number of entries recovered."""
    recovered = 0
    for path in leftovers(folder):
        with contextlib.suppress(OSError):
            if not PART_NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)
            elif (part := Part.take_over(path)) is not None:
                part.finish()
                recovered += len(part.entries)
    return recovered
