"""Where a run's numbers go: a table, JSON lines, TensorBoard and loggers of the user; none of them ends the run."""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import os
import pathlib
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dreamlit.errors import ConfigError
from dreamlit.events import plain, warn
from dreamlit.log_files import RowFile, Table, first_record, scalar_record

LOGGER_HELP = (
    "Logger or list of loggers that get the numbers beside metrics.csv and metrics.jsonl in <default_root_dir>/logs, "
    "which are always written; by default TensorBoard's event files in the same folder. `false`: the two files alone."
)
LOGGING_COMMANDS = ("fit", "validate", "test")
PACKAGES = {
    "wandb": "wandb",
    "comet-ml": "comet-ml",
    "comet_ml": "comet-ml",
    "mlflow": "mlflow",
    "litlogger": "litlogger",
    "tensorboard": "tensorboard",
    "tensorboardX": "tensorboardX",
}
"""What an import error calls the package of a logger, and what pip calls it."""
GIVEN_UP_AFTER = 10
GUARDED = ("log_metrics", "log_hyperparams", "log_graph", "log_image", "save", "finalize", "after_save_checkpoint")


def run_loggers(asked: Any, root: pathlib.Path, command: str) -> list[Logger]:
    """The loggers of a command: metrics.csv and metrics.jsonl always, and what the user asked for.

    Args:
        asked: The value of `trainer.logger`. None or True adds TensorBoard's event files, False nothing, a logger or a
            list of them those instead.
        root: Folder of the run. A fit logs into `logs`, its resumes into `logs-2`, `logs-3` ..., an evaluation into
            `logs-validate` or `logs-test`.
        command: One of dreamlit's commands; those that measure nothing have no loggers.

    Returns:
        Loggers whose failures are warnings; see `guarded`.
    """
    if command not in LOGGING_COMMANDS:
        return []
    name = "logs" if command == "fit" else f"logs-{command}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    folder = next(root / name for name in names if not (root / name).exists())
    if asked is None or asked is True:
        asked = TensorBoard()
    named = list(asked) if isinstance(asked, Iterable) else [asked] if asked else []
    loggers = [RunLogger(), *(logger for logger in named if not isinstance(logger, RunLogger))]
    for logger in loggers:
        if isinstance(logger, FolderLogger):
            logger.open(folder)
    return [guarded(logger, give_up=not isinstance(logger, FolderLogger)) for logger in loggers]


def missing_package(error: BaseException) -> ConfigError | None:
    """What to tell where a logger could not be made because its package is not installed; None for other errors."""
    said = re.search(r"Requirement '([\w-]+)|No module named '(\w+)", f"{error} {error.__cause__} {error.__context__}")
    package = PACKAGES.get(next(filter(None, said.groups()), "") if said else "")
    if not package:
        return None
    return ConfigError(
        f"trainer.logger: the logger that is asked for needs a package that is not installed. Install it with "
        f"`pip install {package}`, or leave the logger out: metrics.csv and metrics.jsonl are written anyway"
    )


# loggers --------------------------------------------------------------------------------------------------------------


def as_number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class FolderLogger(Logger):
    """A logger whose files lie in the log folder of the run, which it is told before the first row."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = pathlib.Path("logs")

    def open(self, folder: pathlib.Path) -> None:
        """Names the folder. Nothing is written before there is a row."""
        self._folder = folder

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` of the run holds them all."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


class RunLogger(FolderLogger):
    """Writes each row of numbers to `metrics.csv` and `metrics.jsonl` at once. Every run has it.

    A line of JSON holds `step` (Lightning's, which counts from 0: the first optimizer step is 0), `time` (UTC) and the
    numbers by name; what is not finite is null there and `nan` or `inf` in the table.
    """

    def open(self, folder: pathlib.Path) -> None:
        super().open(folder)
        self._table, self._lines = Table(folder / "metrics.csv"), RowFile(folder / "metrics.jsonl")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {name: as_number(value) for name, value in metrics.items()} | {"step": step or 0}
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = {"step": row["step"], "time": now.replace("+00:00", "Z"), **plain(row)}
        self._table.waiting.append(row)
        self._lines.waiting.append(json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n")

    @rank_zero_only
    def save(self) -> None:
        try:
            self._lines.write()
        finally:  # one of the two may be writable
            self._table.write()


class TensorBoard(FolderLogger):
    """Writes scalars for TensorBoard into the log folder: `tensorboard --logdir RUN_FOLDER` shows them as curves.

    What is not finite is left out. Looking at them needs the package `tensorboard`, writing them does not. For images
    there is Lightning's `TensorBoardLogger`.
    """

    def open(self, folder: pathlib.Path) -> None:
        super().open(folder)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._records = RowFile(folder / name, first=lambda: first_record(time.time()))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = {name: float(as_number(value)) for name, value in metrics.items()}
        self._records.waiting.append(scalar_record(time.time(), step or 0, values))

    @rank_zero_only
    def save(self) -> None:
        self._records.write()


# what fails -----------------------------------------------------------------------------------------------------------


class Nothing:
    """Stands in for what a logger could not open: whatever is asked of it or done with it does nothing."""

    def __getattr__(self, name: str) -> Nothing:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Nothing:
        return self


class Failures:
    """Turns the failures of one logger into one warning, and counts them."""

    def __init__(self, name: str, give_up: bool) -> None:
        self.name, self.give_up = name, give_up
        self.count, self.off = 0, False
        self._in_a_row: Counter[str] = Counter()

    def attempt(self, what: str, call: Callable[[], Any]) -> Any:
        """What the call returns; None where it fails or the logger has been given up."""
        if self.off:
            return None
        try:
            result = call()
        except Exception as error:
            self._note(what, error)
            return None
        self._in_a_row[what] = 0
        return result

    def _note(self, what: str, error: Exception) -> None:
        self.count += 1
        self._in_a_row[what] += 1
        # One that could not be opened would be opened again, and waited for, at every step.
        self.off = self.give_up and (what == "experiment" or self._in_a_row[what] >= GIVEN_UP_AFTER)
        if self.count == 1 or self.off:
            end = "it gets nothing more in this run" if self.off else "the run goes on, and logging is tried again"
            warn(f"{self.name} failed in {what} ({type(error).__name__}: {error}); {end}")

    def tell(self) -> None:
        if self.count > 1:
            warn(f"{self.name} failed {self.count} times in this run")
        self.count = 0


def guarded(logger: Logger, give_up: bool = True) -> Logger:
    """The same logger, of the same class to whoever asks, whose failures are a warning and never end the run.

    Args:
        logger: Any logger of Lightning's interface; changed in place.
        give_up: Whether to leave it alone once it could not be opened, or has failed ten times in a row.
    """
    kind, failures = type(logger), Failures(type(logger).__name__, give_up)
    members: dict[str, Any] = {name: bearing(kind, name, failures) for name in GUARDED if hasattr(kind, name)}
    if hasattr(kind, "experiment"):
        opened = bearing(kind, "experiment", failures)
        members["experiment"] = property(lambda self: Nothing() if (found := opened(self)) is None else found)
    # As Python names classes made in a function: by its short name a configuration then still finds the one it means.
    own = {"__module__": kind.__module__, "__qualname__": f"guarded.<locals>.{kind.__name__}"}
    logger.__class__ = type(kind.__name__, (kind,), {**own, **members})
    return logger


def bearing(kind: type, name: str, failures: Failures) -> Callable[..., Any]:
    """The member of a class as a function that does not raise."""
    member = getattr(kind, name)
    original = (lambda self: member.__get__(self)) if name == "experiment" else member

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = failures.attempt(name, functools.partial(original, self, *args, **kwargs))
        if name == "finalize":
            failures.tell()
        return result

    return call
