"""Checkpoints on optimizer-step boundaries, an exported adapter beside each, and a rehearsal before the first step."""

from __future__ import annotations

import math
import pathlib
import re
import shutil
import tempfile
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks

from dreamlit import events
from dreamlit.callbacks.ema import averaged
from dreamlit.errors import CheckpointError, CombinationError

STEP_FILE = re.compile(r"step-\d+\.ckpt")


class RunCheckpoint(callbacks.Checkpoint):
    """Saves the state of the run into `<default_root_dir>/checkpoints` and the adapter into `.../adapters`.

    A save happens only when an optimizer step is complete, so that a resumed run repeats the uninterrupted one exactly.

    Args:
        every_n_steps: Optimizer steps between checkpoints; the last step is always saved.
        keep: How many of the newest checkpoints (with their exported adapters) stay; 0 keeps all.
        monitor: Metric of an evaluation, such as `loss/val`, whose best checkpoint is kept as `best.ckpt`.
        mode: Whether a smaller (`min`) or larger (`max`) metric is better.
        preflight: Rehearse saving, loading and exporting before the first step, so that they cannot fail later.
    """

    def __init__(
        self,
        every_n_steps: int = 250,
        keep: int = 3,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        preflight: bool = True,
    ) -> None:
        if every_n_steps < 1 or keep < 0:
            raise CombinationError(
                f"checkpoint.every_n_steps must be at least 1 and keep at least 0, got {every_n_steps} and {keep}"
            )
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.monitor = monitor
        self.mode = mode
        self.preflight = preflight
        self.best_score: float | None = None
        self._best_of: tuple[str, str] | None = None  # metric and mode of `best_score`; older checkpoints do not say
        self._last_saved_step = 0
        self._inside_window = False
        self._stop_asked = False
        self.started = False
        """Whether there was anything left to train."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        every = trainer.val_check_interval
        if self.monitor and isinstance(every, int):
            refuse_split_window(every, trainer.accumulate_grad_batches)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_of": self._best_of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self._best_of = state_dict["best_score"], state_dict.get("best_of")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True
        self._last_saved_step = trainer.global_step
        self._drop_score_of_another(trainer)
        every = trainer.val_check_batch
        if self.monitor and every and every != trainer.num_training_batches:  # given as a share of the epoch
            refuse_split_window(every, trainer.accumulate_grad_batches)
        if self.preflight and not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            self._rehearse(trainer, pl_module)

    def _drop_score_of_another(self, trainer: Trainer) -> None:
        """A score of another metric, or one sought in the other direction, could keep every later one from being best.

        Here and not where the state is loaded, since another callback may have said by then what is monitored.
        """
        if not self.monitor or self.best_score is None:
            return
        now = (self.monitor, self.mode)
        before = self._best_of or now
        if before != now:
            if trainer.is_global_zero:
                metric, mode = before
                events.warned(
                    trainer,
                    f"best.ckpt was chosen by {metric} ({mode}) so far and is now by {self.monitor} ({self.mode}): its "
                    f"score of {self.best_score:.5g} does not count any more, and the next evaluation replaces it",
                )
            self.best_score = None
        self._best_of = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._inside_window = not (whole or trainer.is_last_batch)
        self._hold_stop(trainer)
        step = trainer.global_step
        self._save_if(step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop, trainer)
        self._save_before_the_end(trainer)

    def _save_before_the_end(self, trainer: Trainer) -> None:
        """After SIGTERM: completes the optimizer step in progress, saves it, and lets Lightning break off."""
        if getattr(trainer, "terminated", False) and not self._inside_window and trainer.world_size == 1:
            self._save_if(True, trainer)
            trainer.may_break_off = True  # pyright: ignore[reportAttributeAccessIssue]

    def _save_if(self, wanted: bool, trainer: Trainer, final: bool = False) -> None:
        """Saves a step that is not saved yet.

        The last one is saved before Lightning closes the epoch that it stands in, or a resumed run would count that
        epoch as a whole one.
        """
        if wanted and trainer.global_step != self._last_saved_step:
            self._save_step(trainer, trainer.lightning_module, final)

    def _hold_stop(self, trainer: Trainer) -> None:
        """Lets an optimizer step in progress be completed before the run stops (by `max_time`, say).

        Stopped inside it, its gradients would be lost and the resumed run would be another one.
        """
        self._stop_asked = trainer.should_stop or self._stop_asked
        trainer.should_stop = self._stop_asked and not self._inside_window

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._hold_stop(trainer)
            self._save_if(trainer.should_stop, trainer)
            self._save_before_the_end(trainer)
        if not self.monitor or trainer.sanity_checking or (not trainer.training and trainer.state.fn != "fit"):
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise CombinationError(f"checkpoint.monitor is {self.monitor!r}, which is not logged. Logged: {known}")
        score = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "min" else -1
        if not math.isnan(score) and (self.best_score is None or sign * score < sign * self.best_score):
            self.best_score, self._best_of = score, (self.monitor, self.mode)
            self._save(trainer, pl_module, "best")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        self._save_if(True, trainer, final=True)
        if trainer.is_global_zero:
            for path in export_all(trainer, pl_module, pathlib.Path(trainer.default_root_dir), run_name(trainer)):
                print(f"adapter: {path}")
            print(f"checkpoints: {checkpoint_folder(trainer)}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.started and trainer.is_global_zero:
            print(f"nothing was trained: this run is at step {trainer.global_step}, and {reached(trainer)}")

    def _save_step(self, trainer: Trainer, pl_module: LightningModule, final: bool) -> None:
        self._last_saved_step = trainer.global_step
        final = final or trainer.should_stop or trainer.global_step == trainer.max_steps
        self._save(trainer, pl_module, f"step-{trainer.global_step:06d}", final)
        if self.keep and trainer.is_global_zero:
            self._rotate(trainer)

    def _save(self, trainer: Trainer, pl_module: LightningModule, stem: str, final: bool = False) -> None:
        if trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return  # a trial leaves nothing behind
        refuse_non_finite(trainer, pl_module)
        path = checkpoint_folder(trainer) / f"{stem}.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            files = export_all(trainer, pl_module, adapter_folder(trainer), f"{run_name(trainer)}-{stem}")
            own, *adapters = (events.within(file, trainer.default_root_dir) for file in (path, *files))
            saved = events.Checkpoint(step=trainer.global_step, path=own, adapters=tuple(adapters), final=final)
            events.emit(trainer, saved)

    def _rotate(self, trainer: Trainer) -> None:
        """Removes the oldest numbered checkpoints and their adapters; `best` is never removed.

        Later ones than the one just saved can only be damaged ones, and must not push it out.
        """
        found = step_checkpoints(checkpoint_folder(trainer))
        for path in [path for path in found if step_of(path) <= trainer.global_step][: -self.keep]:
            path.unlink()
            stem = f"{run_name(trainer)}-{path.stem}"
            suffixes = ("", ".safetensors", "-diffusers.safetensors")
            for suffix in (*suffixes, *(f"-ema{suffix}" for suffix in suffixes)):
                exported = adapter_folder(trainer) / f"{stem}{suffix}"
                shutil.rmtree(exported) if exported.is_dir() else exported.unlink(missing_ok=True)

    def _rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, loads and exports once into a folder that is then removed."""
        root = pathlib.Path(trainer.default_root_dir)
        root.mkdir(parents=True, exist_ok=True)
        own = tempfile.mkdtemp(prefix=".preflight-", dir=root) if trainer.is_global_zero else ""
        folder = trainer.strategy.broadcast(own)
        try:
            trainer.save_checkpoint(pathlib.Path(folder) / "rehearsal.ckpt")
            if trainer.is_global_zero:
                torch.load(pathlib.Path(folder) / "rehearsal.ckpt", weights_only=True)
                export_all(trainer, pl_module, pathlib.Path(folder), "rehearsal")
            trainer.strategy.barrier()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def refuse_split_window(every: int | float, accumulate: int) -> None:
    """The best checkpoint is saved after an evaluation, which therefore must not fall inside an optimizer step."""
    if every % accumulate:
        raise CombinationError(
            f"trainer.val_check_interval is {every} batches, which falls inside an accumulation window of "
            f"{accumulate}: the best checkpoint could not be saved there. Use a multiple"
        )


def refuse_non_finite(trainer: Trainer, pl_module: LightningModule) -> None:
    """Stops a run whose weights are lost, before it overwrites a good checkpoint with them.

    Raises:
        CheckpointError: when a trained weight is NaN or infinite.
    """
    bad = [name for name, tensor in pl_module.state_dict().items() if not torch.isfinite(tensor).all()]
    if not bad:
        return
    good = step_checkpoints(checkpoint_folder(trainer))
    resume = f"resume from {good[-1].name} with --ckpt_path last" if good else "no checkpoint was written yet"
    raise CheckpointError(
        f"at step {trainer.global_step} {len(bad)} trained weights are not finite ({bad[0]}, ...); nothing was saved "
        f"and {resume}. Lower the learning rate, set trainer.gradient_clip_val, or use bf16-mixed instead of 16-mixed"
    )


def export_all(trainer: Trainer, module: Any, folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Writes the adapter in each of its formats and, where the run keeps an average to export, that as `STEM-ema`.

    The average goes first, because `dreamlit sample` takes the file that was written last for the run's own.
    """
    with averaged(trainer, module, "export") as average:
        averages = module.export(folder, stem=f"{stem}-ema") if average else []
    return [*module.export(folder, stem=stem), *averages]


def reached(trainer: Trainer) -> str:
    """Why a run that is resumed goes no further."""
    timers = (callback for callback in trainer.callbacks if isinstance(callback, callbacks.Timer))  # pyright: ignore[reportAttributeAccessIssue]
    if any((timer.time_remaining() or 0) <= 0 for timer in timers):
        return "trainer.max_time is over, which counts from its very start; raise it to go on"
    limit = f"max_steps is {trainer.max_steps}" if trainer.max_steps >= 0 else f"max_epochs is {trainer.max_epochs}"
    return f"trainer.{limit}; raise it to go on"


def run_name(trainer: Trainer) -> str:
    return pathlib.Path(trainer.default_root_dir).resolve().name


def checkpoint_folder(trainer: Trainer) -> pathlib.Path:
    return pathlib.Path(trainer.default_root_dir) / "checkpoints"


def adapter_folder(trainer: Trainer) -> pathlib.Path:
    return pathlib.Path(trainer.default_root_dir) / "adapters"


def step_checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """The numbered checkpoints of a run, oldest first."""
    return sorted((path for path in folder.glob("step-*.ckpt") if STEP_FILE.fullmatch(path.name)), key=step_of)


def step_of(path: pathlib.Path) -> int:
    """The optimizer step in the name of a numbered checkpoint."""
    return int(path.stem.removeprefix("step-"))
