"""How the caches are filled: only what is missing, in batches that shrink when memory runs out, with the time left."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dreamlit.datamodules.shard_parts import recover
from dreamlit.datamodules.shards import ShardFolder, ShardWriter
from dreamlit.errors import DataError, Faults, ModelError

Encode = Callable[[list[Any]], list[bytes | None]]
"""Makes the bytes of each entry; None for one whose values are not finite."""

MAX_FAULTS = 20


@dataclasses.dataclass(frozen=True)
class Job:
    """One entry to build: where it goes, its key, what it is made from and how a message calls that."""

    store: ShardFolder
    key: str
    source: Any
    name: str
    group: Any = None
    """Jobs of one group may share a batch: the size of the image."""


@dataclasses.dataclass(frozen=True)
class FillReport:
    """What one fill did. `str()` is the line that a user sees."""

    kind: str
    encoded: int
    reused: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind}: {self.encoded} encoded, {self.reused} found in the cache, {self.seconds:.1f} s"


def missing_jobs(jobs: Iterable[Job]) -> tuple[list[Job], int]:
    """The jobs whose entries are missing or damaged, each key once, and how many were found whole."""
    by_store: dict[ShardFolder, dict[str, Job]] = {}
    for job in jobs:
        by_store.setdefault(job.store, {}).setdefault(job.key, job)
    todo, found = [], 0
    for store, wanted in by_store.items():
        recover(store.folder)
        store.refresh()
        missing = store.missing(wanted)
        todo += [wanted[key] for key in missing]
        found += len(wanted) - len(missing)
    return todo, found


def batches(jobs: Iterable[Job], batch_size: int) -> list[list[Job]]:
    """Jobs of one store and one group together, at most `batch_size` at once, in the order given."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.store, job.group), []).append(job)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


def ahead(load: Callable[[Any], Any], items: Iterable[Any], depth: int = 2) -> Iterator[tuple[Any, Any]]:
    """Pairs of an item and `load(item)`, loaded by one thread while the caller works on the pair before."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Any, Any]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > depth:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def progress_bar(title: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with the time left; yields the function that moves it on."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of PyTorch or Python says that memory ran out, on the device or on the CPU."""
    text = str(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text))


class Halving:
    """Runs a batch function over lists; halves the batch, for good, each time memory runs out.

    Raises:
        DataError: memory runs out for one item alone; the message names it.
    """

    def __init__(self, encode: Encode, batch_size: int, release: Callable[[], None]) -> None:
        self.encode, self.batch_size, self.release = encode, batch_size, release

    def __call__(self, items: list[Any], names: Sequence[str]) -> list[bytes | None]:
        done: list[bytes | None] = []
        while len(done) < len(items):
            chunk = items[len(done) : len(done) + self.batch_size]
            try:
                result = self._attempt(chunk)
            except ModelError as error:  # the model does not know the names
                raise ModelError(f"{', '.join(names[len(done) :][: len(chunk)])}: {error}") from error
            if result is not None:
                done += result
                continue
            self.release()
            if len(chunk) == 1:
                raise DataError(
                    f"{names[len(done)]}: memory ran out while this one was encoded alone. Free memory on the device, "
                    "lower the resolution of its dataset, or encode on another device; what is done so far is kept"
                )
            self.batch_size = len(chunk) // 2
        return done

    def _attempt(self, chunk: list[Any]) -> list[bytes | None] | None:
        try:
            return self.encode(chunk)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None  # outside the handler, so that the traceback no longer holds the failed batch's tensors


class Fill:
    """One kind of entry being built: how its inputs are loaded and encoded.

    Args:
        title: What the bar and the messages call it.
        load: Source of a job -> input; runs in one thread, ahead of the encoder.
        encode: List of inputs -> bytes of each, None where they are not finite.
        batch_size: Most inputs at once.
        release: Called after memory ran out, before the next attempt.
        progress: Show a bar on stderr.
    """

    def __init__(
        self,
        title: str,
        load: Callable[[Any], Any],
        encode: Encode,
        batch_size: int = 1,
        release: Callable[[], None] = lambda: None,
        progress: bool = True,
    ) -> None:
        self.title, self.load, self.batch_size, self.progress = title, load, batch_size, progress
        self.encoder = Halving(encode, batch_size, release)

    def run(self, jobs: Sequence[Job]) -> int:
        """Build every job's entry; the number stored. What is not finite is named at the end and never stored."""
        faults = Faults(f"{self.title}: the model gave values that are not finite; these were not cached", DataError)
        stored = 0
        groups = batches(jobs, self.batch_size)
        with progress_bar(self.title, len(jobs), self.progress) as advance, contextlib.ExitStack() as stack:
            writers: dict[ShardFolder, ShardWriter] = {}
            for group, inputs in ahead(lambda group: [self.load(job.source) for job in group], groups):
                store = group[0].store
                if store not in writers:
                    writers[store] = stack.enter_context(store.writer())
                stored += self._store(writers[store], group, inputs, faults)
                advance(len(group))
                if len(faults.lines) >= MAX_FAULTS:
                    faults.add("(stopped here)")
                    break
        if faults:
            faults.add("a model that overflows in half precision needs float32, or weights that were repaired for it")
        faults.raise_if_any()
        return stored

    def _store(self, writer: ShardWriter, group: list[Job], inputs: list[Any], faults: Faults) -> int:
        stored = 0
        for job, data in zip(group, self.encoder(inputs, [job.name for job in group]), strict=True):
            if data is None:
                faults.add(job.name)
            else:
                writer.add(job.key, data)
                stored += 1
        return stored


@contextlib.contextmanager
def loaded(encoders: Any, part: str, device: Any) -> Iterator[None]:
    """A part of the model on a device inside the block, freed after it, also after an exception."""
    try:
        encoders.load(part, device=device)
        yield
    finally:
        encoders.unload(part)


def filled(kind: str, jobs: Iterable[Job], build: Callable[[list[Job]], int]) -> FillReport:
    """Find what is missing, have `build` make it, and report; `build` is not called when nothing is missing."""
    start = time.perf_counter()
    todo, found = missing_jobs(jobs)
    encoded = build(todo) if todo else 0
    return FillReport(kind, encoded, found, time.perf_counter() - start)
