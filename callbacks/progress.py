"""Progress over the whole run: steps, losses, speed, the time left, and whether the data keeps up."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from torch import Tensor

from dreamlit.errors import ConfigError
from dreamlit.types import Role

SLOW_DATA = 0.2
"""Share of the time spent on waiting for data from which on the user is told."""
JUDGED_AFTER_S = 20.0
OF_CLASS = len(Role)
"""Stands for class prompts where others have a `Role`."""
RECENT_BATCHES = 50
SHORT_EPOCH = 50


class RunProgress(ProgressBar):
    """One bar for the run, on a terminal; elsewhere a line now and then with the same numbers.

    Evaluations have a bar below it, on a terminal alone, and so have `dreamlit validate`, `test` and `predict`.

    The numbers are means over the last 50 batches of this process, speed and data share those since the last update:
    `loss`, `instance` and `prior` (where there are regularisation samples), steps a second, the time left, and `data`,
    the share of the time in which training waited for the next batch. `trainer.enable_progress_bar: false` turns this
    and all other bars off.

    Args:
        refresh_s: Seconds between updates of the bar. The losses are fetched from the device only then.
        line_every_s: Seconds between lines where the output is not a terminal.
    """

    def __init__(self, refresh_s: float = 0.5, line_every_s: float = 30.0) -> None:
        for name, value in (("refresh_s", refresh_s), ("line_every_s", line_every_s)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"RunProgress: {name} is {value}; it must be a number of seconds from 0 on")
        super().__init__()
        self.refresh_s = refresh_s
        self.line_every_s = line_every_s
        self._enabled = True
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._side: TaskID | None = None  # of an evaluation in progress
        self._recent: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=RECENT_BATCHES)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = trainer.estimated_stepping_batches  # infinite where only max_time ends the run
        self._begin, self._first_step = time.monotonic(), trainer.global_step
        self._begin_waited = waited_s(trainer)
        self._last, self._last_waited = self._begin, self._begin_waited
        self._said_once = self._told_of_data = False
        self._recent.clear()
        self._stop()
        if self._on_terminal(trainer):
            self._task = self._add("training", self._total, trainer.global_step)

    def _on_terminal(self, trainer: Trainer) -> bool:
        # What stands for stderr while a bar is shown says of itself that it is no terminal.
        shown = self._bar is not None or sys.stderr.isatty()
        return self._enabled and trainer.is_global_zero and shown

    def _add(self, title: str, total: float, completed: int = 0) -> TaskID:
        """Adds a line to the bar, which is put up if there is none. An infinite total is shown as unknown."""
        if self._bar is None:
            # In a narrow terminal the numbers go on in the next line instead of being cut off.
            said = TextColumn("{task.fields[said]}", table_column=Column(overflow="fold", ratio=1))
            name, bar = TextColumn("{task.description}"), BarColumn(bar_width=16)
            columns = (name, bar, MofNCompleteColumn(), said, TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
        return self._bar.add_task(title, total=None if math.isinf(total) else total, completed=completed, said="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not (self._enabled and trainer.is_global_zero):
            return
        # Lightning hands over the loss already divided by the batches that are summed into one step.
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        of_class = outputs.get("of_class")
        losses, roles = outputs["per_sample"].detach(), batch.role
        if of_class is not None:
            losses, roles = torch.cat([losses, of_class]), torch.cat([roles, roles.new_full(of_class.shape, OF_CLASS)])
        self._recent.append((loss, losses, roles))
        now, step = time.monotonic(), trainer.global_step
        wait = self.refresh_s if self._bar else self.line_every_s
        early = self._said_once and now - self._last < wait and step < self._total
        if early or step == self._first_step:
            return
        self._said_once = True
        self._tell_of_slow_data(trainer, now)
        self._show(step, self._said(trainer, now, step))
        self._last, self._last_waited = now, waited_s(trainer)

    def _show(self, step: int, said: str) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step, said=said)
            return
        of = "" if math.isinf(self._total) else f" of {self._total:.0f}"
        print(f"step {step}{of}, {said}", file=sys.stderr)

    def _said(self, trainer: Trainer, now: float, step: int) -> str:
        speed = (step - self._first_step) / max(now - self._begin, 1e-9)
        left = "" if math.isinf(self._total) else f", {span(max(self._total - step, 0) / speed)} left"
        data = share(waited_s(trainer) - self._last_waited, now - self._last)
        return f"{', '.join(recent_losses(self._recent))}, {speed:.2f} steps/s, data {data:.0%}{left}"

    def _tell_of_slow_data(self, trainer: Trainer, now: float) -> None:
        """Says once that the loader is what the training waits for."""
        data = share(waited_s(trainer) - self._begin_waited, now - self._begin)
        if self._told_of_data or now - self._begin < JUDGED_AFTER_S or data < SLOW_DATA:
            return
        self._told_of_data = True
        text = f"{data:.0%} of the time so far was spent on waiting for data: {advice(trainer)}"
        if self._bar:
            self._bar.console.print(text)
        else:
            print(text, file=sys.stderr)

    # evaluations and predictions -----------------------------------------------------------------------------------

    def _open(self, trainer: Trainer, title: str, batches: Iterable[float]) -> None:
        self._close()  # one that failed is not told to end
        if self._on_terminal(trainer):
            self._side = self._add(title, sum(batches))

    def _close(self) -> None:
        if self._task is None:
            self._stop()
        elif self._bar and self._side is not None:
            self._bar.remove_task(self._side)
        self._side = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rehearsed = trainer.sanity_checking
        self._open(trainer, "evaluation", trainer.num_sanity_val_batches if rehearsed else trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer, "evaluation", trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(trainer, "images", trainer.num_predict_batches)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._bar and self._side is not None:
            self._bar.advance(self._side)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    on_test_end = on_predict_end = on_validation_end

    # the end ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
        self._bar = self._task = self._side = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()


def recent_losses(batches: deque[tuple[Tensor, Tensor, Tensor]]) -> list[str]:
    """Name and mean of the loss, and of its parts where there are several; waits for the device.

    Args:
        batches: loss [], losses [N] of samples and class prompts and their roles [N] of each batch.
    """
    total = torch.stack([loss for loss, _, _ in batches]).float().cpu()
    losses = torch.cat([losses for _, losses, _ in batches]).float().cpu()
    roles = torch.cat([roles for _, _, roles in batches]).cpu()
    said = [f"loss {finite_mean(total):.4f}"]
    names = {"instance": Role.INSTANCE, "prior": Role.REGULARISATION, "class": OF_CLASS}
    parts = {name: part for name, role in names.items() if len(part := losses[roles == role])}
    if len(parts) > 1:
        said += [f"{name} {finite_mean(part):.4f}" for name, part in parts.items()]
    lost = int((~total.isfinite()).sum())
    return said if not lost else [*said, f"{lost} of {len(total)} batches not finite"]


def finite_mean(values: Tensor) -> float:
    """The mean of what is finite; NaN where nothing is."""
    return float(values[values.isfinite()].mean())


def waited_s(trainer: Trainer) -> float:
    """Seconds that this process has waited for its training batches; 0 for a loader that does not count them."""
    return getattr(trainer.train_dataloader, "waited_s", 0.0)


def share(part_s: float, whole_s: float) -> float:
    return min(part_s / whole_s, 1.0) if whole_s > 0 else 0.0


def advice(trainer: Trainer) -> str:
    """What to change where the loader is too slow."""
    loader: Any = trainer.train_dataloader
    workers, batches = loader.num_workers, len(loader)
    if workers and batches < SHORT_EPOCH:
        return (
            f"its {workers} workers start anew in every epoch, which has only {batches} batches here. Set "
            "data.num_workers to 0, or raise the datasets' repeats"
        )
    return f"raise data.num_workers (now {workers}), or put data.cache_dir on a faster disk"


def span(seconds: float) -> str:
    """A time span at a glance: "40 s", "12 min", "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
