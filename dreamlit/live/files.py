"""What may be read of a run's folder, and how: nothing outside it, nothing hidden, no secrets of its configuration."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import stat
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

PICTURES = ("previews", "report")
"""Folders whose pictures are shown; others only where an event names them."""
MOST_BYTES = 4 * 1024 * 1024
"""Of a log that is read again at each change; of a longer one, `PARTS` parts of together this size."""
PARTS = 64
MOST_TEXT = 1024 * 1024
SECRET = re.compile(
    r"^(?P<key>(?P<indent> *)(?:- )*[\"']?(?:\w*_)?(?:secret|token|passw(?:or)?d|api_?key)[\"']?[ ]*:[ ]*)"
    r"(?!null[ ]*$)(?:[>|].*(?:\n(?P=indent) +.*)*|\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)
ADDRESS = re.compile(r"(?P<scheme>\bhttps?://)(?:[^\s/'\"]*@)?(?P<host>[^\s/'\"?#]*)[^\s'\",\]}]*")


def parts_of(path: str) -> list[str] | None:
    """The parts of a relative path with forward slashes; None where it could lead anywhere else or is hidden.

    >>> parts_of("previews/step-000250/grid.png")
    ['previews', 'step-000250', 'grid.png']
    >>> parts_of("previews/../config.yaml") is None
    True
    """
    parts = path.split("/")
    bad = any(not part or part.startswith(".") or re.search(r"[\\:\x00-\x1f\x7f]", part) for part in parts)
    return None if bad else parts


class RunFolder:
    """The folder of a run, which need not exist yet. Nothing here raises for what is missing or broken in it."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = pathlib.Path(root)

    @property
    def name(self) -> str:
        return self.root.absolute().name or str(self.root)

    def inside(self, path: str) -> pathlib.Path | None:
        """Where a relative path leads; None outside the folder, also by a link, and for what is hidden there."""
        parts = parts_of(path)
        if parts is None:
            return None
        root, found = os.path.realpath(self.root), os.path.realpath(self.root.joinpath(*parts))
        with contextlib.suppress(ValueError):
            return pathlib.Path(found) if parts_of(os.path.relpath(found, root).replace(os.sep, "/")) else None
        return None

    def open(self, path: str) -> BinaryIO | None:
        """A plain file of the folder for reading; None for anything else, such as a named pipe, which would wait."""
        found = self.inside(path)
        if found is None:
            return None
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(found, flags)
        except (OSError, ValueError):
            return None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
        return None

    def text(self, path: str) -> str | None:
        """A text file of at most 1 MiB; of a longer one the beginning."""
        file = self.open(path)
        if file is None:
            return None
        with file:
            return file.read(MOST_TEXT).decode("utf-8", "replace")

    def mark(self, path: str) -> tuple[int, int] | None:
        """Changes when the file does: its time and size; None where there is none."""
        with contextlib.suppress(OSError, ValueError):
            found = self.inside(path)
            if found:
                about = found.stat()
                return about.st_mtime_ns, about.st_size
        return None

    def names(self, path: str = "") -> list[str]:
        """What lies in a folder of the run and is not hidden, sorted; nothing where there is no such folder."""
        found = self.inside(path) if path else self.root
        with contextlib.suppress(OSError, ValueError):
            return sorted(name for name in os.listdir(found) if parts_of(name)) if found else []
        return []

    def logs(self, ending: str) -> list[str]:
        """The files `metrics.ENDING` of the run's fits, the oldest fit first."""
        folders = [name for name in self.names() if re.fullmatch(r"logs(-\d+)?", name)]
        folders.sort(key=lambda name: int(name.partition("-")[2] or 1))
        return [f"{folder}/metrics.{ending}" for folder in folders if self.mark(f"{folder}/metrics.{ending}")]

    # texts for the page -------------------------------------------------------------------------------------------

    def config(self) -> str | None:
        """`config.yaml` without what is secret in it: values of secret keys, and all of an address but its host."""
        text = self.text("config.yaml")
        return None if text is None else without_secrets(text)

    def plan(self) -> str | None:
        """`plan.txt` (what `dreamlit plan` prints, if it was kept), or the datasets of the configuration."""
        kept = self.text("plan.txt")
        if kept and kept.strip():
            return kept
        return datasets_of(self.config() or "") or None

    def max_steps(self) -> int | None:
        """`trainer.max_steps` of the configuration, where it is a number of steps."""
        found = re.search(r"^trainer:\n(?:[ \t#].*\n|\n)*?  max_steps:[ ]*(\d+)\s*$", self.config() or "", re.MULTILINE)
        return int(found[1]) if found else None


def without_secrets(text: str) -> str:
    """
    >>> without_secrets("url: https://discord.com/api/webhooks/1/abc\\ntoken: xyz\\ntoken_env: HOOK")
    'url: https://discord.com/...\\ntoken: (hidden)\\ntoken_env: HOOK'
    """
    text = SECRET.sub(lambda found: found["key"] + "(hidden)", text)
    return ADDRESS.sub(lambda found: f"{found['scheme']}{found['host']}/...", text)


def datasets_of(config: str) -> str:
    """The lines of `data.datasets` in a configuration as YAML; "" where there are none."""
    lines = iter(config.splitlines())
    for line in lines:
        if line.startswith("data:"):
            break
    kept: list[str] = []
    for line in lines:
        if line.strip() and not line.startswith((" ", "#")):
            break
        if kept and re.match(r" {0,2}[^\s#-]", line):
            break
        if kept or re.match(r"  datasets:", line):
            kept.append(line)
    return "\n".join(kept).rstrip()


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a log; of one that is too long those in parts of it, evenly spread from its beginning to its end."""
    size, part = file.seek(0, os.SEEK_END), MOST_BYTES // PARTS
    starts = [number * (size - part) // (PARTS - 1) for number in range(PARTS)] if size > MOST_BYTES else [0]
    for start in starts:
        file.seek(start)
        lines = file.read(part if size > MOST_BYTES else size).split(b"\n")
        begun, ended = start == 0, size <= MOST_BYTES or start + part >= size
        yield from lines[0 if begun else 1 : None if ended else -1]  # without those that are cut


def recipe_of(file: BinaryIO) -> dict[str, Any]:
    """What a PNG of dreamlit says of how it was drawn: its text chunk `dreamlit`; {} where there is none."""
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return {}
    for kind, size in chunks_of(file):
        if kind == b"tEXt" and size < MOST_TEXT:
            body = file.read(size)
            if zlib.crc32(kind + body) == int.from_bytes(file.read(4), "big") and body.startswith(b"dreamlit\0"):
                with contextlib.suppress(ValueError):
                    content = json.loads(body[9:].decode("latin-1"))
                    return content if isinstance(content, dict) else {}
                return {}
        else:
            file.seek(size + 4, os.SEEK_CUR)
    return {}


def chunks_of(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and size of each chunk of a PNG up to its pixels; who asks reads or skips the rest of each."""
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        yield head[4:], int.from_bytes(head[:4], "big")
