"""A progress bar over the whole run: optimizer steps, loss, speed and the time left."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RunProgress(ProgressBar):
    """One bar for the run, on a terminal; elsewhere a line now and then.

    Args:
        refresh_s: Seconds between updates of the bar. The loss is fetched from the device only then.
        line_every_s: Seconds between lines where the output is not a terminal.
    """

    def __init__(self, refresh_s: float = 0.5, line_every_s: float = 30.0) -> None:
        super().__init__()
        self.refresh_s = refresh_s
        self.line_every_s = line_every_s
        self._enabled = True
        self._bar: Progress | None = None
        self._last = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = trainer.estimated_stepping_batches  # infinite where only max_time ends the run
        self._begin, self._first_step = time.monotonic(), trainer.global_step
        self._last = 0.0
        if not (self._enabled and trainer.is_global_zero and sys.stderr.isatty()):
            return
        loss = TextColumn("loss {task.fields[loss]}")
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), loss, TimeElapsedColumn())
        self._bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True))
        total = None if math.isinf(self._total) else self._total
        self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, loss="")
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        now, step = time.monotonic(), trainer.global_step
        wait = self.refresh_s if self._bar else self.line_every_s
        if not (self._enabled and trainer.is_global_zero) or (now - self._last < wait and step < self._total):
            return
        self._last = now
        # Lightning hands over the loss already divided by the batches that are summed into one step.
        loss = f"{float(outputs['loss']) * trainer.accumulate_grad_batches:.4f}"
        if self._bar:
            self._bar.update(self._task, completed=step, loss=loss)
        else:
            speed = max(step - self._first_step, 1) / max(now - self._begin, 1e-9)
            line = f"step {step} of {self._total:.0f}, loss {loss}, {speed:.2f} steps/s"
            left = f", {(self._total - step) / speed:.0f} s left"
            print(line.replace(" of inf", "") + ("" if math.isinf(self._total) else left), file=sys.stderr)

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()
