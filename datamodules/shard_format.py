"""How entries are laid out on disk: records in a tar shard, and the index beside it.

A shard `dreamlit-<time>-<random>.tar` is an ordinary tar, readable by any WebDataset reader: one member
`<key>.safetensors` per entry, its checksum in the member's pax header. The `.index` beside it gives offsets for random
access; it can always be made again from the tar. No torch is needed here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
import tarfile
from typing import NamedTuple

from dreamlit.errors import DataError

SHARD_NAME = re.compile(r"dreamlit-[0-9a-f]{16}-[0-9a-f]{8}\.tar")
KEY = re.compile(r"[0-9a-f]{8,128}")
SUFFIX = ".safetensors"
CHECKSUM = "DREAMLIT.checksum"  # a vendor keyword in the member's pax header; other tools skip it
BLOCK = 512
INDEX_HEAD = "dreamlit-index-1"


class Entry(NamedTuple):
    """Where the bytes of an entry stand in its shard."""

    offset: int
    size: int
    checksum: str


Index = dict[str, Entry]


def digest(data: bytes) -> str:
    """The checksum of an entry: BLAKE2b, 128 bits, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def index_path(shard: pathlib.Path) -> pathlib.Path:
    """The index that belongs to a shard."""
    return shard.with_suffix(".index")


def shard_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """The complete shards of a folder, oldest first; foreign files are not looked at."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{folder}: the cache folder cannot be read ({error.strerror}). Name another folder") from error
    return [folder / name for name in sorted(names) if SHARD_NAME.fullmatch(name)]


# --- the tar format -------------------------------------------------------------------------------------------------


def record(key: str, data: bytes) -> tuple[bytes, int]:
    """One entry as tar blocks (pax header, header, data, padding) and the offset of the data in them."""
    info = tarfile.TarInfo(key + SUFFIX)
    info.size, info.mtime, info.mode = len(data), 0, 0o644
    info.pax_headers = {CHECKSUM: digest(data)}
    header = info.tobuf(tarfile.PAX_FORMAT)
    return header + data + b"\0" * (-len(data) % BLOCK), len(header)


def scan(path: pathlib.Path) -> Index:
    """The entries of a tar by walking its headers; damaged headers are stepped over, cut-off entries are left out."""
    entries: Index = {}
    size = path.stat().st_size
    with contextlib.suppress(tarfile.TarError, OSError, ValueError), tarfile.open(path, "r:", ignore_zeros=True) as tar:
        for member in tar:
            key = member.name.removesuffix(SUFFIX)
            checksum = member.pax_headers.get(CHECKSUM)
            whole = member.offset_data + member.size <= size
            if checksum and whole and member.name.endswith(SUFFIX) and KEY.fullmatch(key):
                entries.setdefault(key, Entry(member.offset_data, member.size, checksum))
    return entries


def read_bytes(path: pathlib.Path, entry: Entry, check: bool = True) -> bytes | None:
    """The bytes of an entry, or None where they are not what was written. A missing shard is a FileNotFoundError.

    Without `check` only the length is looked at.
    """
    # Opened for each read: about 10 us, and there is no descriptor to share between threads, forks or pickles.
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(fd, entry.size, entry.offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None
    finally:
        os.close(fd)
    whole = len(data) == entry.size and (not check or digest(data) == entry.checksum)
    return data if whole else None


# --- the index ------------------------------------------------------------------------------------------------------


def write_index(shard: pathlib.Path, entries: Index, tar_bytes: int) -> None:
    """Write the index of a shard under a temporary name and rename it into place."""
    body = json.dumps({"tar_bytes": tar_bytes, "entries": entries}, separators=(",", ":"))
    target = index_path(shard)
    temporary = target.with_name(f"{target.name}.tmp-{secrets.token_hex(4)}")
    temporary.write_text(f"{INDEX_HEAD} {digest(body.encode())}\n{body}", encoding="ascii")
    os.replace(temporary, target)


def parse_index(shard: pathlib.Path) -> tuple[Index, int] | None:
    """What the index file says, and the size of the tar that it was made for; None where it is missing or damaged."""
    try:
        head, _, body = index_path(shard).read_text(encoding="ascii").partition("\n")
    except (OSError, ValueError):
        return None
    if head != f"{INDEX_HEAD} {digest(body.encode())}":
        return None
    content = json.loads(body)
    return {key: Entry(*value) for key, value in content["entries"].items()}, content["tar_bytes"]


def read_index(shard: pathlib.Path) -> Index | None:
    """The index of a shard, or None where it is missing, damaged or was made for a tar of another size."""
    parsed = parse_index(shard)
    return parsed[0] if parsed is not None and parsed[1] == shard.stat().st_size else None


def load_index(shard: pathlib.Path) -> Index:
    """The index of a shard, made again from the tar (and written, where the folder allows it) if it cannot be used."""
    entries = read_index(shard)
    if entries is None:
        entries = scan(shard)
        with contextlib.suppress(OSError):
            write_index(shard, entries, shard.stat().st_size)
    return entries
