"""What a run tells about itself: typed events, emitted once and passed on to whoever subscribed to that run.

`docs/events.md` describes every event, and the JSON that files and webhooks get, by field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
import pathlib
import re
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

VERSION = 1
"""Of the JSON form. It rises when a field goes or changes its meaning; a new field or event leaves it as it is."""

LEVELS = ("debug", "info", "warning", "error")
LONGEST_MESSAGE = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened after `step` complete optimizer steps."""

    kind: ClassVar[str]
    levels: ClassVar[tuple[str, ...]] = ("info",)
    """Levels that an event of this kind may have."""
    step: int

    @property
    def level(self) -> str:
        """One of `LEVELS`."""
        return self.levels[0]


Stage = Literal["started", "finished", "interrupted", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStage(Event):
    """The training begins, or has ended in one of three ways. `of`: optimizer steps of the whole run, where known."""

    kind = "run"
    levels = ("info", "warning", "error")
    stage: Stage
    of: int | None

    @property
    def level(self) -> str:
        return {"interrupted": "warning", "failed": "error"}.get(self.stage, "info")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingStatus(Event):
    """How the training goes. `loss` is the mean of the step's batches; speed and time left are of the whole fit."""

    kind = "status"
    of: int | None
    loss: float | None
    steps_per_s: float
    left_s: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(Event):
    """A checkpoint was written, and the adapter files that go with it. `final`: the training ends with it."""

    kind = "checkpoint"
    path: str
    adapters: tuple[str, ...] = ()
    final: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewStep(Event):
    """One sampler step of an image in the making, from 1 to `of`; `path` is a picture of it where there is one."""

    kind = "preview"
    levels = ("debug",)
    prompt: str
    seed: int
    sampler_step: int
    of: int
    path: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """A picture on disk, made by the base model, the trained one, or (a grid) both."""

    path: str
    model: Literal["base", "adapter", "both"]
    prompt: str | None = None
    seed: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationImages(Event):
    """Images of one validation or report, the most telling first."""

    kind = "images"
    images: tuple[Image, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores(Event):
    """Scores of one set of images: name -> {"base", "adapter", "ema", "photos": value}, as far as there are any."""

    kind = "scores"
    scores: Mapping[str, Mapping[str, float | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something to look at while the run goes on, such as a step that was left out; scrubbed by `scrubbed`."""

    kind = "warning"
    levels = ("warning",)
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Error(Event):
    """The exception that ended the run: its type and its message, scrubbed by `scrubbed`."""

    kind = "error"
    levels = ("error",)
    type: str
    message: str


KINDS: dict[str, type[Event]] = {
    event.kind: event
    for event in (RunStage, TrainingStatus, Checkpoint, PreviewStep, ValidationImages, Scores, Warned, Error)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """An event with its place: the run's name, the fit (an id of this call of `fit`), number from 0, UTC time."""

    run: str
    fit: str
    number: int
    time: datetime.datetime
    event: Event

    def to_json(self) -> dict[str, Any]:
        """What is written and sent: plain values; numbers that are not finite become null, which JSON lacks."""
        return {
            "version": VERSION,
            "run": self.run,
            "fit": self.fit,
            "number": self.number,
            "time": self.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": self.event.kind,
            "level": self.event.level,
            "data": plain(dataclasses.asdict(self.event)),
        }


def plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # a broken file name in a message
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# who hears of it ------------------------------------------------------------------------------------------------------

Receive = Callable[[Record], None]
ATTRIBUTE = "dreamlit_events"


class Stream:
    """The events of one run, in one order for all its subscribers; hung on the run's trainer, never global."""

    def __init__(self, run: str) -> None:
        self.run, self.fit = run, uuid.uuid4().hex
        self._subscribers: list[Receive] = []
        self._failed: set[int] = set()
        self._number = 0
        self._lock = threading.RLock()

    def subscribe(self, receive: Receive) -> Callable[[], None]:
        """Calls `receive` with each `Record` from now on, until what is returned here is called.

        `receive` runs in the thread that emits, in the middle of training: it must hand its work to others at once.
        """
        with self._lock:
            self._subscribers.append(receive)
        return lambda: self._leave(receive)

    def _leave(self, receive: Receive) -> None:
        with self._lock:
            if receive in self._subscribers:
                self._subscribers.remove(receive)

    def emit(self, event: Event) -> None:
        """Passes an event to every subscriber; whatever fails there is a warning, once for each of them."""
        with self._lock:
            now = datetime.datetime.now(datetime.timezone.utc)
            record = Record(run=self.run, fit=self.fit, number=self._number, time=now, event=event)
            self._number += 1
            for receive in tuple(self._subscribers):
                try:
                    receive(record)
                except Exception as error:
                    self._warn_once(receive, error)

    def _warn_once(self, receive: Receive, error: Exception) -> None:
        if id(receive) not in self._failed:
            self._failed.add(id(receive))
            warn(f"a subscriber to the run's events failed ({type(error).__name__}: {error}); the run goes on")

    def __bool__(self) -> bool:
        return bool(self._subscribers)


def subscribe(trainer: Any, receive: Receive) -> Callable[[], None]:
    """Subscribes to the run of a trainer; returns what ends the subscription. See `Stream.subscribe`."""
    stream = getattr(trainer, ATTRIBUTE, None)
    if not stream:  # the first of this run: what an earlier fit of the same trainer left is none of its business
        stream = Stream(pathlib.Path(trainer.default_root_dir).resolve().name)
        setattr(trainer, ATTRIBUTE, stream)
    return stream.subscribe(receive)


def emit(trainer: Any, event: Event) -> None:
    """Emits an event of a trainer's run. Never raises; where nobody has subscribed, it does nothing."""
    stream = getattr(trainer, ATTRIBUTE, None)
    if stream:
        stream.emit(event)


def warn(message: str, stacklevel: int = 3) -> None:
    """A warning that never raises, also where warnings are turned into errors."""
    with contextlib.suppress(Warning):
        warnings.warn(message, stacklevel=stacklevel)


def warned(trainer: Any, message: str) -> None:
    """A warning to the user, which is also an event of the trainer's run. Never raises."""
    warn(message, stacklevel=4)
    emit(trainer, Warned(step=trainer.global_step, message=scrubbed(message, trainer.default_root_dir)))


# what may be told -----------------------------------------------------------------------------------------------------


def within(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """A path as events give it: relative to the run's folder with forward slashes; its name alone if it is elsewhere.

    A link inside the run's folder is inside it, wherever it leads.

    >>> within("/home/me/runs/dog/checkpoints/step-1.ckpt", "/home/me/runs/dog")
    'checkpoints/step-1.ckpt'
    """
    for whole in (os.path.abspath, os.path.realpath):
        with contextlib.suppress(ValueError):
            return pathlib.Path(whole(path)).relative_to(whole(root)).as_posix()
    return pathlib.Path(path).name


def scrubbed(message: str, root: str | os.PathLike[str]) -> str:
    """A message to send away: the run's folder becomes `<run>`, other paths of the home folder `~/...`; cut in length.

    A quoted path goes as a whole. Of one without quotes that has spaces in its last part, that part's later words stay.
    """
    for folder in {str(pathlib.Path(root).resolve()), os.path.abspath(root)}:
        message = re.sub(re.escape(folder) + r"(?![\w.-])", "<run>", message)
    for folder in {os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}:
        if len(folder) > 1 and os.path.isabs(folder):
            home = re.escape(folder) + r"(?![\w.-])"
            message = re.sub(rf"(['\"`]){home}.*?\1", r"\1~/...\1", message)
            message = re.sub(rf"{home}[^\s:,;'\"]*(?: [^\s/:,;'\"]*/[^\s:,;'\"]*)*", "~/...", message)
    return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 3] + "..."
