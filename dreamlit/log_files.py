"""Files of rows that can be read at any time: a CSV table, lines of text, TensorBoard's records.

Only whole rows are appended, nothing is kept open, and what a full disk refuses waits for the next try. TensorBoard's
files are made here, because scalars need fifty lines: the packages that write them bring 3 to 60 MB, a thread, and a
queue that blocks the training for good once the disk is full.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import pathlib
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

MOST_WAITING = 10_000
"""Rows that a file keeps in memory while they cannot be written; of more, the oldest are lost."""
LARGEST = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
"""Of a 32-bit float, which is what an event holds."""


def append_whole(path: pathlib.Path, data: bytes) -> None:
    """Appends all of `data` or, where the disk is full, nothing. Makes the folder if it is gone.

    Raises:
        OSError: when it could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(f"no room for {len(data)} bytes in {path}")
        except OSError:
            os.truncate(path, before)
            raise


class RowFile:
    """A file that is appended to; what cannot be written now waits for the next try."""

    def __init__(self, path: pathlib.Path, first: Callable[[], bytes] = bytes) -> None:
        self.path, self.first = path, first  # `first`: what a new file begins with
        self.waiting: deque[bytes] = deque(maxlen=MOST_WAITING)

    def write(self) -> None:
        if self.waiting:
            start = b"" if self.path.is_file() else self.first()
            append_whole(self.path, start + b"".join(self.waiting))
            self.waiting.clear()


class Table:
    """A CSV file whose columns grow: with a new one the file is written anew, whole or not at all."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.waiting: deque[dict[str, Any]] = deque(maxlen=MOST_WAITING)
        self._columns: list[str] = []

    def write(self) -> None:
        if not self.waiting:
            return
        columns = sorted({*self._columns}.union(*self.waiting))
        if columns == self._columns and self.path.is_file():
            append_whole(self.path, as_csv(self._columns, self.waiting))
        else:
            earlier = self._earlier_rows()
            put_anew(self.path, as_csv(columns, [dict(zip(columns, columns, strict=True)), *earlier, *self.waiting]))
            self._columns = columns
        self.waiting.clear()

    def _earlier_rows(self) -> list[dict[str, Any]]:
        if not (self._columns and self.path.is_file()):
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.DictReader(file))


def as_csv(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, columns, extrasaction="ignore").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def put_anew(path: pathlib.Path, data: bytes) -> None:
    """Puts a file of these bytes in the place of the one that is there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.unlink(missing_ok=True)
        append_whole(partial, data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# TensorBoard ----------------------------------------------------------------------------------------------------------


def first_record(wall_time: float) -> bytes:
    """What one of TensorBoard's files begins with: the version of its format. `wall_time`: seconds since 1970."""
    return record(field(1, struct.pack("<d", wall_time), 1) + field(3, b"brain.Event:2"))


def scalar_record(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """One `Event` (tensorflow/core/util/event.proto) with a `Summary` of the values that are finite.

    >>> len(scalar_record(0.0, 3, {"loss": 0.5, "nothing": math.nan})) == len(scalar_record(0.0, 3, {"loss": 0.5}))
    True
    """
    shown = {name: value for name, value in values.items() if abs(value) <= LARGEST}
    each = (field(1, name.encode("utf-8", "replace")) + field(2, struct.pack("<f", v), 5) for name, v in shown.items())
    summary = b"".join(field(1, value) for value in each)
    return record(field(1, struct.pack("<d", wall_time), 1) + field(2, varint(step), 0) + field(5, summary))


def field(number: int, content: bytes, kind: int = 2) -> bytes:
    """A field of a protocol buffer; kind 0 is a varint, 1 and 5 have 8 and 4 bytes, 2 says its length."""
    return varint(number << 3 | kind) + (varint(len(content)) if kind == 2 else b"") + content


def varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + varint(value >> 7)


def record(data: bytes) -> bytes:
    """A TFRecord: length, its checksum, the data, its checksum."""
    length = struct.pack("<Q", len(data))
    return length + masked_crc(length) + data + masked_crc(data)


def masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc_table()[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@functools.cache
def crc_table() -> list[int]:
    """Of CRC-32C (Castagnoli), reflected."""
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
    return table
