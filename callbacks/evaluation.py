"""Evaluations that compare: the same images, noise levels and noises every time, by steps, with the best kept."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from dreamlit import events
from dreamlit.callbacks.checkpoint import RunCheckpoint, run_name
from dreamlit.callbacks.ema import EMA
from dreamlit.errors import CombinationError, ConfigError, Faults, nearest
from dreamlit.evaluating import AVERAGE, NAMES, WEIGHTS, Measured, told
from dreamlit.step_lines import record, recorded

METRICS = (f"loss/val{WEIGHTS}", f"loss/val{AVERAGE}")
FILE = "evaluation.jsonl"


class StableEvaluation(Callback):
    """Measures the loss on photos that are not trained on, at fixed noise levels with fixed noise, and keeps the best.

    The photos come from `data.hold_out` or from datasets with `dataset_type: eval`; `data.eval_timesteps` and
    `data.eval_seeds` say how finely each is measured. The loss is the run's own, without caption dropout, module
    dropout, rollout and input perturbation, so that two values differ only as the weights do. It is logged as
    `loss/val`, in bands of timesteps as `loss/val/0-250` and so on, and with an EMA whose `use_for` has `validation`
    also for the average, as `loss/val-ema`. `<default_root_dir>/evaluation.jsonl` has a line for each evaluation, with
    every photo's own loss, and `<default_root_dir>/report/evaluation.png` shows the curve when the run ends. It only
    looks: the training is the same to the last bit without it.

    Args:
        every_n_steps: Optimizer steps between evaluations.
        every_n_epochs: Epochs between evaluations, instead of `every_n_steps`; 0.5 is twice an epoch, rounded to whole
            optimizer steps. Once an epoch unless one of the two is given.
        at_start: Also evaluate before the first step: what the model does without the training.
        bands: Equal parts of the timesteps that get a mean of their own; 0 for none. Little noise shows fine detail,
            much noise shape and composition.
        monitor: What the best checkpoint and `patience` go by: `loss/val`, the weights, or `loss/val-ema`, the average.
        save_best: Keep the checkpoint with the lowest value as `best.ckpt`, its adapter beside the others.
        patience: Stop the run after so many evaluations in a row without a new lowest value; without it, never.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_epochs: float | None = None,
        at_start: bool = True,
        bands: int = 4,
        monitor: str = "loss/val",
        save_best: bool = True,
        patience: int | None = None,
    ) -> None:
        self.every_n_steps, self.every_n_epochs = every_n_steps, every_n_epochs
        self.at_start, self.bands = at_start, bands
        self.monitor, self.save_best, self.patience = monitor, save_best, patience
        self.failures = 0
        """How often lines or the plot could not be written."""
        self._waiting: list[dict[str, Any]] = []  # lines that could not be written yet
        self._stopping: EarlyStopping | None = None
        self._every = 0  # optimizer steps between evaluations of this run
        self._interval: int | None = None  # the same in batches: what the Trainer was given
        self._last_step = -1
        faults = Faults("StableEvaluation cannot evaluate with these options", ConfigError)
        for line in self._option_faults():
            faults.add(line)
        faults.raise_if_any()

    # checks -------------------------------------------------------------------------------------------------------

    def _option_faults(self) -> Iterator[str]:
        steps, epochs = self.every_n_steps, self.every_n_epochs
        if steps is not None and epochs is not None:
            yield "every_n_steps and every_n_epochs are both given; each says when to evaluate, so leave one out"
        if steps is not None and steps < 1:
            yield f"every_n_steps is {steps}; it must be at least 1"
        if epochs is not None and not 0 < epochs < math.inf:
            yield f"every_n_epochs is {epochs}; it must be above 0 and finite"
        if self.bands < 0 or self.bands == 1:
            yield f"bands is {self.bands}; use 2 or more, or 0 for none: one band is the whole loss"
        if self.monitor not in METRICS:
            yield f"monitor is {self.monitor!r}; {nearest(str(self.monitor), METRICS)}"
        elif self.monitor != METRICS[0] and not self.save_best and self.patience is None:
            yield f"monitor is {self.monitor!r} and would do nothing: save_best is false and there is no patience"
        if self.patience is not None and self.patience < 1:
            yield f"patience is {self.patience}; it must be at least 1"

    def evaluation_faults(self, trainer: Trainer) -> Iterator[str]:
        """What does not go together with the rest of the run, a sentence each; nothing is loaded."""
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]  (it sets max_steps and limits)
            return
        yield from self._interval_faults(trainer)
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        averaged = any(isinstance(other, EMA) and "validation" in other.use_for for other in callbacks)
        if self.monitor != METRICS[0] and not averaged:
            yield f"StableEvaluation monitors {self.monitor!r}, which needs an EMA whose use_for has validation"
        if self.save_best:
            yield from self._checkpoint_faults(callbacks)
        for other in callbacks:
            own = isinstance(other, EarlyStopping) and other is not self._stopping
            if own and self.patience is not None and other.monitor == self.monitor:
                yield f"StableEvaluation has a patience, and EarlyStopping watches {self.monitor!r} too; leave one out"

    def _interval_faults(self, trainer: Trainer) -> Iterator[str]:
        mine = [self._interval] if self._interval else []
        if self.every_n_steps is not None:
            mine.append(self.every_n_steps * trainer.accumulate_grad_batches)
            yield from self._never(trainer, self.every_n_steps, f"every_n_steps is {self.every_n_steps}")
        timed, asked = getattr(trainer, "_val_check_time_interval", None), trainer.val_check_interval
        if timed is not None or (asked not in mine if isinstance(asked, int) else asked not in (None, 1.0)):
            every = asked if timed is None else f"{timed:g} s"
            yield (
                f"StableEvaluation says when to evaluate, and so does trainer.val_check_interval ({every}); leave that "
                "out and use every_n_steps or every_n_epochs"
            )
        if trainer.check_val_every_n_epoch not in (None, 1):
            yield (
                "StableEvaluation says when to evaluate, and so does trainer.check_val_every_n_epoch "
                f"({trainer.check_val_every_n_epoch}); leave that out and use every_n_epochs"
            )
        if isinstance(trainer.limit_val_batches, int) or trainer.limit_val_batches != 1.0:  # 1 is one batch
            yield (
                f"trainer.limit_val_batches is {trainer.limit_val_batches}, which would leave out a part of the grid "
                "or all of it; lower data.hold_out, data.eval_timesteps or data.eval_seeds instead"
            )

    def _never(self, trainer: Trainer, every: int, said: str, epoch_steps: int | None = None) -> Iterator[str]:
        limits = [(trainer.max_steps, f"trainer.max_steps is {trainer.max_steps}")]
        if epoch_steps and (epochs := trainer.max_epochs or -1) > 0:
            steps = epochs * epoch_steps
            limits.append((steps, f"trainer.max_epochs is {epochs}, which are {steps} optimizer steps"))
        for steps, end in limits:
            if 0 < steps < every:
                yield f"StableEvaluation would not evaluate during the training: {said}, but {end}"

    def _checkpoint_faults(self, callbacks: list[Any]) -> Iterator[str]:
        keepers = [other for other in callbacks if isinstance(other, RunCheckpoint)]
        if not keepers:
            yield "StableEvaluation: save_best needs RunCheckpoint among the callbacks, or set it to false"
        for keeper in keepers:
            if (keeper.monitor, keeper.mode) not in ((None, "min"), (None, "max"), (self.monitor, "min")):
                yield (
                    f"StableEvaluation keeps the lowest {self.monitor} as best.ckpt, but checkpoint.monitor is "
                    f"{keeper.monitor!r} ({keeper.mode}); leave that out, or set save_best: false"
                )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        raise_faults(self.evaluation_faults(trainer))
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        self._join(trainer)
        if stage == "fit":
            epoch_steps = trainer.datamodule.epoch_batches // trainer.accumulate_grad_batches  # pyright: ignore
            epochs = 1.0 if self.every_n_epochs is None else self.every_n_epochs
            self._every = self.every_n_steps or max(1, round(epochs * epoch_steps))
            asked = f"{epochs:g} epochs are {self._every} optimizer steps"
            asked = f"every_n_steps is {self._every}" if self.every_n_steps else asked
            raise_faults(self._never(trainer, self._every, asked, epoch_steps))
            self._interval = trainer.val_check_interval = self._every * trainer.accumulate_grad_batches
            trainer.check_val_every_n_epoch = None  # the interval goes on over the epochs

    def _join(self, trainer: Trainer) -> None:
        """Sets up who acts on the result: the order is who stops the run, who saves it, and then who draws."""
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        keepers = [other for other in callbacks if isinstance(other, Checkpoint)]
        others = [other for other in callbacks if other not in (*keepers, self, self._stopping)]
        for keeper in keepers:
            if self.save_best and isinstance(keeper, RunCheckpoint):
                keeper.monitor, keeper.mode = self.monitor, "min"
        if self.patience is not None and self._stopping is None:
            # A value that is not finite is no new lowest one; with `check_finite` it would end the run at once.
            options: Any = {"check_on_train_epoch_end": False, "check_finite": False}
            self._stopping = EarlyStopping(self.monitor, patience=self.patience, **options)
        stopping = [self._stopping] if self._stopping else []
        trainer.callbacks = [*others, *stopping, *keepers, self]  # pyright: ignore[reportAttributeAccessIssue]

    # the run ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates where one is due: at the start, or at a checkpoint that was saved just before its evaluation."""
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        if self._stopping and self.patience is not None:
            self._stopping.patience = self.patience  # a checkpoint brings the one of the run that wrote it
        step = trainer.global_step
        due = self.at_start if step == 0 else step % self._every == 0
        if due and step != self._last_step:
            evaluate_now(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        measured = pl_module.evaluated()
        self._log_bands("loss/val", measured, pl_module)
        if trainer.state.fn != "fit" or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        self._last_step = trainer.global_step
        if trainer.is_global_zero:
            bands = self.bands, pl_module.process.borders
            line = {"step": self._last_step, **{NAMES[key]: told(one, *bands) for key, one in measured.items()}}
            self._attempt(trainer, "its line in evaluation.jsonl", self._record, line)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._log_bands("loss/test", pl_module.evaluated(), pl_module)

    def _log_bands(self, metric: str, measured: dict[str, Measured], module: Any) -> None:
        for key, one in measured.items() if self.bands else ():
            for name, value in one.bands(self.bands, module.process.borders).items():
                module.log(f"{metric}{key}/{name}", value, rank_zero_only=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            self._attempt(trainer, "the plot", self._draw)
            if self.failures > 1:
                events.warned(trainer, f"StableEvaluation: writing lines or the plot failed {self.failures} times")

    def _draw(self, trainer: Trainer) -> None:
        from dreamlit.curves import draw_evaluation, lowest

        rows = recorded(self._path(trainer), trainer.global_step)
        if not rows:
            return
        name = "ema" if self.monitor == METRICS[1] else "raw"
        path = pathlib.Path(trainer.default_root_dir) / "report" / "evaluation.png"
        draw_evaluation(path, rows, run_name(trainer), name)
        best = lowest(rows, name)
        if best is not None:
            print(f"evaluation: lowest {self.monitor} {best[1]:.5f} at step {best[0]}: {path}")
        if self._stopping and self._stopping.stopping_reason_message:
            print(f"stopped early at step {trainer.global_step}: {self._stopping.stopping_reason_message}")

    def _record(self, trainer: Trainer, line: dict[str, Any]) -> None:
        self._waiting.append(line)
        while self._waiting:  # what a full disk refused comes first
            self._write(trainer, self._waiting[0])
            del self._waiting[0]

    def _write(self, trainer: Trainer, line: dict[str, Any]) -> None:
        path = self._path(trainer)
        before = recorded(path, line["step"])[-1:]
        record(path, line)
        if before and grid_of(before[0]) != grid_of(line):
            events.warned(
                trainer,
                f"StableEvaluation: from step {line['step']} on other photos, noise levels or noises are measured than "
                "before: the losses do not compare, and best.ckpt may be of the old ones",
            )

    def _path(self, trainer: Trainer) -> pathlib.Path:
        return pathlib.Path(trainer.default_root_dir) / FILE

    def _attempt(self, trainer: Trainer, what: str, make: Any, *args: Any) -> None:
        """A file that cannot be written never ends the run: one warning, and the rest is counted."""
        try:
            make(trainer, *args)
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                reason = f"{type(error).__name__}: {error}"
                events.warned(trainer, f"StableEvaluation: {what} could not be written ({reason}); training goes on")

    # state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]


def raise_faults(lines: Iterator[str]) -> None:
    faults = Faults("StableEvaluation does not go together with the rest of the run", CombinationError)
    for line in lines:
        faults.add(line)
    faults.raise_if_any()


def grid_of(line: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    """Which cells the line of an evaluation is of, as far as it says."""
    raw = line.get("raw", {})
    return raw.get("cells"), raw.get("levels"), sorted(raw.get("images", ()))


def evaluate_now(trainer: Trainer) -> None:
    """Runs Lightning's validation loop between two training batches, as it does itself."""
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    loop.restarting = False  # a resumed run would go on in an evaluation that is over
    first = connector._first_loop_iter
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first
