"""The events of a run as its file `events.jsonl` grows: in order, from any place on, whatever happens to the file."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import json
import os
import re
import types
import typing
import zlib
from typing import Any

from dreamlit.events import KINDS, Event, plain
from dreamlit.live.files import RunFolder

FILE = "events.jsonl"
MOST_AT_ONCE = 1024 * 1024
"""Bytes that one call of `read` looks at; a line that is longer cannot be read."""
HEAD = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Place:
    """A place in the file: a mark of its first line, so that another file is not taken for this one, and an offset."""

    file: int = 0
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.file:08x}-{self.offset}"

    @classmethod
    def of(cls, text: str) -> Place:
        """A place from its text; the beginning for a text that is none.

        >>> Place.of("0000002a-70") == Place(42, 70), Place.of("nonsense") == Place()
        (True, True)
        """
        found = re.fullmatch(r"([0-9a-f]{8})-(\d{1,18})", text.strip())
        return cls(int(found[1], 16), int(found[2])) if found else cls()


@dataclasses.dataclass(frozen=True)
class News:
    """What was read: the records with the place behind each, and the place behind all.

    again: the file is another one than the place said, or shorter, and was read from its beginning.
    broken: lines that hold no record.
    more: there is more to read at once.
    """

    records: tuple[tuple[Place, dict[str, Any]], ...]
    place: Place
    again: bool = False
    broken: int = 0
    more: bool = False


def read(folder: RunFolder, place: Place) -> News | None:
    """The whole lines behind a place; None where there is no file of events. A line that is still written waits."""
    file = folder.open(FILE)
    if file is None:
        return None
    with file:
        head = file.read(HEAD)
        end = head.find(b"\n")
        mark = zlib.crc32(head if end < 0 else head[:end])
        if end < 0 and len(head) < HEAD:
            return News((), Place(), again=place != Place())
        again = place.offset > 0 and mark != place.file
        begin = place.offset if mark == place.file else 0
        if begin > file.seek(0, os.SEEK_END):
            again, begin = True, 0
        file.seek(begin)
        chunk = file.read(MOST_AT_ONCE)
    return parsed(chunk, Place(mark, begin), again)


def parsed(chunk: bytes, begin: Place, again: bool) -> News:
    records, broken, offset = [], 0, begin.offset
    full = len(chunk) == MOST_AT_ONCE
    whole = chunk.rfind(b"\n") + 1
    if full and not whole:  # a line without end: it is left out, piece by piece
        return News((), Place(begin.file, offset + len(chunk)), again, broken=1, more=True)
    for line in chunk[:whole].splitlines(keepends=True):
        offset += len(line)
        record = record_of(line)
        if record:
            records.append((Place(begin.file, offset), record))
        elif line.strip():
            broken += 1
    return News(tuple(thinned(records)), Place(begin.file, offset), again, broken, more=full)


def record_of(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None where there is none.

    Where a run was killed while it wrote, the next fit's first record stands behind half a line: it is found there.
    """
    starts = [0] + [found.start() for found in re.finditer(rb'\{"version":', line) if found.start()]
    for start in starts:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line[start:])
            if is_record(record):
                return plain(record)  # a browser reads no NaN
    return None


def is_record(value: Any) -> bool:
    """Whether it has what the page reads: who, what, when and where in the run, and what an event of its kind says."""
    kinds = {"fit": str, "number": int, "time": str, "event": str, "level": str, "data": dict}
    right = isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())
    return right and fits(value["data"], KINDS.get(value["event"], Event))  # one of a later version has its step


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of the kind of a field of an event; what has a default may be missing.

    >>> fits([1, 2], tuple[int, ...]), fits([1, "2"], tuple[int, ...]), fits({"step": None}, Event)
    (True, False, False)
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        own = isinstance(value, dict)
        return own and all(fits(value[name], of) if name in value else may for name, of, may in fields_of(kind))
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in args)
    if origin is tuple:
        return isinstance(value, list) and all(fits(one, args[0]) for one in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, dict) and all(fits(one, args[1]) for one in value.values())
    if origin is typing.Literal:
        return isinstance(value, str)
    return type(value) in ((int, float) if kind is float else (kind,))


@functools.cache
def fields_of(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name and kind of each field, and whether it has a default."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    return tuple((one.name, hints[one.name], one.default is not dataclasses.MISSING) for one in fields)


def thinned(records: list[tuple[Place, dict[str, Any]]]) -> list[tuple[Place, dict[str, Any]]]:
    """The records without a status that a later one of the same fit has made old: a long run has thousands."""
    kept, newest = [], None
    for place, record in reversed(records):
        if record["event"] == "status":
            if newest == record["fit"]:
                continue
            newest = record["fit"]
        kept.append((place, record))
    return kept[::-1]
