"""A shard that is being written: locked by its writer, complete entry by entry, and recovered when its writer died."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import secrets
import time

from dreamlit.datamodules.shard_format import (
    BLOCK,
    Entry,
    Index,
    digest,
    index_path,
    read_bytes,
    record,
    scan,
    write_index,
)

try:
    import fcntl
except ImportError:  # no locks on this platform: leftovers are then recovered by age alone
    fcntl = None

INDEX_NAME = re.compile(r"dreamlit-[0-9a-f]{16}-[0-9a-f]{8}\.index(\.tmp-[0-9a-f]{8})?")
PART_NAME = re.compile(r"dreamlit-[0-9a-f]{16}-[0-9a-f]{8}\.tar\.part")
STALE_S = 3600.0  # an index without a shard may belong to a writer that is about to rename its shard
STALE_UNLOCKABLE_S = 86400.0  # without locks, only age tells a dead writer from a living one


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
