"""What is learned of every file before anything is trained: its content's hash, its size, whether it can be decoded."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import PIL

from dreamlit.datamodules.images import decode
from dreamlit.datamodules.masks import decode_mask
from dreamlit.datamodules.sources import Source
from dreamlit.errors import DataError

LAYOUT = 1
WORKERS = min(4, os.cpu_count() or 1)  # decoding holds whole photos in memory, so that more is not always better


class Job(NamedTuple):
    """A file to look at: `kind` is `photo` or `mask`."""

    kind: str
    source: Source
    name: str


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a file turned out to be.

    Args:
        content: BLAKE2b of its bytes, hexadecimal.
        size: (height, width) after EXIF.
        transparent: A photo with parts that are not opaque.
        black: A mask, or the alpha of a transparent photo, that is 0 everywhere.
        notes: What a user may want to know, one sentence each.
    """

    content: str
    size: tuple[int, int]
    transparent: bool = False
    black: bool = False
    notes: tuple[str, ...] = ()


def content_hash(data: bytes) -> str:
    """The name of a file's content: BLAKE2b, 160 bits, hexadecimal."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


class ProbeCache:
    """Probes of earlier runs, found by kind and content. Files that could not be decoded are always tried again.

    Args:
        path: A file with a JSON object a line; a damaged line is passed over. None keeps nothing.
    """

    def __init__(self, path: str | os.PathLike | None) -> None:
        self.path = None if path is None else pathlib.Path(path)
        self._known: dict[tuple[str, str], Probe] = dict(self._load())
        self._new: list[str] = []

    def _load(self) -> Iterator[tuple[tuple[str, str], Probe]]:
        if self.path is None or not self.path.is_file():
            return
        for line in self.path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                record = json.loads(line)
                if record["made_by"] == _made_by():
                    yield (record["kind"], record["content"]), _probe_of(record)

    def get(self, kind: str, content: str) -> Probe | None:
        return self._known.get((kind, content))

    def put(self, kind: str, probe: Probe) -> None:
        self._known[kind, probe.content] = probe
        self._new.append(json.dumps({"made_by": _made_by(), "kind": kind, **dataclasses.asdict(probe)}))

    def save(self) -> str | None:
        """Appends what is new; returns a warning where that failed, since a run does not need it."""
        if self.path is None or not self._new:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:  # the leading newline ends a line that an earlier run left half-written
                file.write(("\n" + "\n".join(self._new) + "\n").encode())
        except OSError as error:
            return f"{self.path} cannot be written ({error.strerror}): the next start decodes all photos again"
        self._new.clear()
        return None


def _made_by() -> str:
    return f"{LAYOUT} Pillow {PIL.__version__}"


def _probe_of(record: dict[str, Any]) -> Probe:
    height, width = (int(side) for side in record["size"])
    if height < 1 or width < 1:
        raise ValueError("no size")
    notes = tuple(str(note) for note in record["notes"])
    return Probe(str(record["content"]), (height, width), bool(record["transparent"]), bool(record["black"]), notes)


def look_at(kind: str, data: bytes, name: str) -> Probe:
    """Decodes one file.

    Raises:
        DataError: when it cannot be used.
    """
    if kind == "mask":
        mask = decode_mask(data, name)
        return Probe(content_hash(data), (mask.shape[0], mask.shape[1]), black=not mask.any())
    photo = decode(data, name, alpha="white")
    height, width = photo.pixels.shape[:2]
    hidden = photo.alpha is not None and not photo.alpha.any()
    return Probe(content_hash(data), (height, width), photo.alpha is not None, hidden, photo.notes)


def probe_all(jobs: Iterable[Job], cache: ProbeCache, progress: bool) -> dict[Job, Probe | DataError]:
    """Looks at every file once, several at a time; a file that cannot be used gives its error in place of a probe."""
    jobs = list(dict.fromkeys(jobs))

    def look(job: Job) -> tuple[Probe | DataError, bool]:
        try:
            data = job.source.read(job.name)
            known = cache.get(job.kind, content_hash(data))
            return known or look_at(job.kind, data, job.name), known is None
        except DataError as error:
            return error, False

    results: dict[Job, Probe | DataError] = {}
    pool = concurrent.futures.ThreadPoolExecutor(WORKERS)
    try:
        with _bar(len(jobs), progress) as advance:
            for job, (result, is_new) in zip(jobs, pool.map(look, jobs), strict=True):
                results[job] = result
                advance()
                if is_new and isinstance(result, Probe):
                    cache.put(job.kind, result)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupted start ends at once, not after thousands of photos
    return results


@contextlib.contextmanager
def _bar(total: int, wanted: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, where that is a terminal."""
    if not wanted or not total or not sys.stderr.isatty():
        yield lambda: None
        return
    import rich.console
    import rich.progress

    with rich.progress.Progress(console=rich.console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task("looking at photos", total=total)
        yield lambda: bar.advance(task)
