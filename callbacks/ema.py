"""A moving average of the trained weights, kept beside them and shown in their place where it is asked for."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dreamlit.averaging import SIGMA_REL_MAX, Snapshot, gamma_of, power_decay, warm_decay, write_snapshot
from dreamlit.errors import CheckpointError, CombinationError, ConfigError, Faults, nearest
from dreamlit.evaluating import AVERAGE, WEIGHTS

USES = ("validation", "report", "export", "preview")
DEVICES = ("cpu", "model")
DEFAULT_DECAY = 0.999


class EMA(Callback):
    """Averages the trained weights over the run (float32), which evens out the noise of single steps.

    Training is the same to the last bit with and without it. The average is saved in each checkpoint beside the
    weights, never in their place, and each exported adapter has the average beside it: `<name>-ema.safetensors`.

    Args:
        decay: What stays of the average after one optimizer step, in [0, 1); 0.999 unless this or `sigma_rel` is given.
            It is reached by a ramp: after n updates at most (1 + n) / (10 + n) stays, so that in a run of fewer than
            about 9 / (1 - decay) updates the average reaches back over the last ninth of the run.
        sigma_rel: Width of the average as a share of the run so far, in (0, 0.2886], instead of `decay` (the power
            function of Karras et al. 2024, arXiv 2312.02696); 0.05 to 0.15 is usual. A list keeps several averages for
            the snapshots, and shows the first.
        update_every_n_steps: Optimizer steps between updates; the decay is corrected for it.
        use_for: Where the average is used: `validation` (each evaluation measures the weights, `loss/val`, and then the
            average, `loss/val-ema`), `report` (RunReport shows it in place of the weights), `export` and `preview`
            (ValidationPreview shows it beside the weights); left out, all of them. Until the first update the weights
            themselves are used.
        device: Where the average lives: `cpu` (no device memory) or `model` (the model's device, faster).
        snapshots_every_n_steps: Optimizer steps between files of the average (one of each `sigma_rel`, as large as the
            adapter, never removed) in `<default_root_dir>/checkpoints/ema-snapshots`, and one at the end;
            `dreamlit.averaging.reconstruct` makes averages of other widths from them.
    """

    def __init__(
        self,
        decay: float | None = None,
        sigma_rel: float | list[float] | None = None,
        update_every_n_steps: int = 1,
        use_for: list[str] | None = None,
        device: str = "cpu",
        snapshots_every_n_steps: int | None = None,
    ) -> None:
        self.decay = decay
        self._decay = DEFAULT_DECAY if decay is None else decay
        self.widths = [] if sigma_rel is None else list(sigma_rel) if isinstance(sigma_rel, list) else [sigma_rel]
        self.every = update_every_n_steps
        self.use_for = USES if use_for is None else tuple(use_for)
        self.device = device
        self.snapshots_every = snapshots_every_n_steps
        faults = Faults("EMA cannot average with these options", ConfigError)
        for line in (*self._decay_faults(sigma_rel), *self._step_faults(), *self._place_faults()):
            faults.add(line)
        faults.raise_if_any()
        self._decays: dict[str, Callable[[int], float]] = {
            f"sigma_rel {width:g}": functools.partial(power_decay, gamma_of(width)) for width in self.widths
        } or {"decay": functools.partial(warm_decay, self._decay, self.every)}
        self._averages: dict[str, dict[str, Tensor]] = {}  # track -> parameter name -> average; the first is shown
        self._updates = 0
        self._arrived: list[Tensor] = []  # page-locked room for weights on their way from a GPU
        self._on_the_way: Any = None  # the event after which they are there
        self._raw: dict[str, Tensor] | None = None  # the weights, while the average is in their place
        self._seen_step = self._in_snapshot = 0  # optimizer steps; updates
        self._moved = False  # a step of the window being gathered was taken

    # checks -------------------------------------------------------------------------------------------------------

    def _decay_faults(self, sigma_rel: Any) -> Iterator[str]:
        if self.decay is not None and sigma_rel is not None:
            yield "decay and sigma_rel are both given; each says how long the average is, so leave one out"
        if self.decay is not None and not 0 <= self.decay < 1:
            yield f"decay is {self.decay}; it must be at least 0 and below 1"
        if sigma_rel == [] or len({f"{width:g}" for width in self.widths}) < len(self.widths):
            yield f"sigma_rel is {sigma_rel}; give at least one, each once"
        for width in self.widths:
            if not 0 < width <= SIGMA_REL_MAX:
                yield f"sigma_rel is {width}; it must be above 0 and at most {SIGMA_REL_MAX:.4f} (a plain mean)"

    def _step_faults(self) -> Iterator[str]:
        if self.every < 1:
            yield f"update_every_n_steps is {self.every}; it must be at least 1"
        if self.snapshots_every is None:
            if len(self.widths) > 1:
                yield "sigma_rel has several values, which only snapshots can use; set snapshots_every_n_steps"
            return
        if self.snapshots_every < 1 or (self.every > 0 and self.snapshots_every % self.every):
            yield f"snapshots_every_n_steps is {self.snapshots_every}; it must be a multiple of update_every_n_steps"
        if not self.widths:
            yield "snapshots_every_n_steps needs sigma_rel, best two such as [0.05, 0.1]: other averages do not add up"

    def _place_faults(self) -> Iterator[str]:
        for name in self.use_for:
            if name not in USES:
                yield f"use_for has {name!r}; {nearest(str(name), USES)}"
        if len(set(self.use_for)) < len(self.use_for):
            yield f"use_for is {list(self.use_for)}; name each use once"
        if not self.use_for and self.snapshots_every is None:
            yield f"use_for is empty, so the average would be of no use; allowed: {', '.join(USES)}"
        if self.device not in DEVICES:
            yield f"device is {self.device!r}; {nearest(str(self.device), DEVICES)}"

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        trial = trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue]  (it sets max_steps)
        if stage == "fit" and not trial and 0 < trainer.max_steps < self.every:
            raise CombinationError(
                f"EMA would never be updated: update_every_n_steps is {self.every}, but trainer.max_steps is "
                f"{trainer.max_steps}"
            )
        if "validation" in self.use_for:
            pl_module.eval_passes = (WEIGHTS, AVERAGE)

    # averaging ----------------------------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        """Updates of the average so far."""
        self._settle()
        return self._updates

    @property
    def average(self) -> dict[str, Tensor]:
        """The average that is shown: float32 tensors by the adapter's parameter names, on its device."""
        self._settle()
        return next(iter(self._averages.values()), {})

    def describe(self) -> dict[str, Any]:
        """What an image or a file made with the average should say of it."""
        kind = {"sigma_rel": self.widths[0]} if self.widths else {"decay": self._decay}
        return {**kind, "update_every_n_steps": self.every, "updates": self.updates}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._place(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step, self._in_snapshot = trainer.global_step, self.updates
        self._moved = trainer.global_step % self.every != 0  # steps before a resume count as taken

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return  # inside an accumulation window
        self._seen_step = step
        self._moved = self._moved or not getattr(pl_module, "step_skipped", False)
        if step % self.every == 0 and self._moved:
            self._moved = False
            self._update(pl_module)
            if self.snapshots_every and step % self.snapshots_every == 0:
                self._write_snapshots(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.updates and trainer.is_global_zero:
            warnings.warn(
                f"EMA was not updated once: the run ended at step {trainer.global_step} and update_every_n_steps is "
                f"{self.every}. The weights were used in its place",
                stacklevel=2,
            )
        if self.snapshots_every:
            self._write_snapshots(trainer)

    def _place(self, module: Any) -> None:
        """Brings the averages where they are to live; the first of them are the weights as they are now."""
        weights = module.adapter.parameters()
        home = module.device if self.device == "model" else "cpu"
        for track in self._decays:
            start = self._averages.get(track) or weights
            self._averages[track] = {name: copied(start[name], home) for name in weights}  # in the weights' order
        if self.device == "cpu" and module.device.type == "cuda":
            self._arrived = [torch.empty(w.shape, dtype=torch.float32, pin_memory=True) for w in weights.values()]

    @torch.no_grad()
    def _update(self, module: Any) -> None:
        """Takes the weights into the averages; from a GPU they are fetched now and taken in when they are there.

        The copy stands in the GPU's queue before the next optimizer step, so it never sees that one's weights, and
        nobody waits for it.
        """
        assert self._raw is None, "the average must not be updated with itself"
        weights = [weight.detach() for weight in module.adapter.parameters().values()]
        if not self._arrived:
            self._take_in(weights)
            return
        self._settle()
        for room, weight in zip(self._arrived, weights, strict=True):
            room.copy_(weight, non_blocking=True)
        self._on_the_way = torch.cuda.Event()
        self._on_the_way.record()

    def _settle(self) -> None:
        """Finishes an update that is on its way; whatever reads the averages calls this first."""
        if self._on_the_way is not None:
            self._on_the_way.synchronize()
            self._on_the_way = None
            self._take_in(self._arrived)

    @torch.no_grad()
    def _take_in(self, weights: list[Tensor]) -> None:
        for track, average in self._averages.items():
            share = 1 - self._decays[track](self._updates)
            torch._foreach_lerp_(list(average.values()), weights, share)  # pyright: ignore[reportPrivateImportUsage]
        self._updates += 1

    def _write_snapshots(self, trainer: Trainer) -> None:
        known, self._in_snapshot = self._in_snapshot == self.updates, self.updates
        if known or not trainer.is_global_zero or trainer.fast_dev_run:  # pyright: ignore
            return
        folder = pathlib.Path(trainer.default_root_dir) / "checkpoints" / "ema-snapshots"
        for width, average in zip(self.widths, self._averages.values(), strict=True):
            write_snapshot(folder, self._seen_step, Snapshot(width, self.updates, average))

    # in the place of the weights ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def swapped_in(self, module: Any) -> Iterator[bool]:
        """Inside, the module has the average in the place of its weights; afterwards it has them back, bit for bit.

        Yields whether it is so: not before the first update. May be nested. `averaged` also asks `use_for`.
        """
        mine = self._put_average(module)
        try:
            yield self._raw is not None
        finally:
            if mine:
                self._put_back(module)

    def _put_average(self, module: Any) -> bool:
        if self._raw is not None or not self.updates:
            return False
        raw = {name: copied(w, self.average[name].device) for name, w in module.adapter.parameters().items()}
        module.adapter.load_state(self.average)
        self._raw = raw
        return True

    def _put_back(self, module: Any) -> None:
        if self._raw is not None:
            module.adapter.load_state(self._raw)
            self._raw = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Puts the average in place for the pass over the grid that measures it, which is the last one."""
        if "validation" in self.use_for and pl_module.eval_passes[dataloader_idx] == AVERAGE:
            self._put_average(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back(pl_module)

    on_test_batch_start = on_validation_batch_start
    on_test_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._put_back(pl_module)

    # state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "averages": self._averages} if self._averages else {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._raw is not None:  # another callback saves in the middle of an evaluation
            checkpoint["state_dict"] = self._raw

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the averages of a checkpoint, which must fit the adapter and be of the lengths that are asked for."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:
            what = "the average starts from its weights" if trainer.training else "its weights are used as they are"
            warnings.warn(f"the checkpoint holds no average (its run had no EMA): {what}", stacklevel=2)
            return
        came, asked = (", ".join(tracks) for tracks in (state["averages"], self._decays))
        if came != asked:
            raise CheckpointError(
                f"the checkpoint's average has {came}, but EMA is asked for {asked}: an average cannot change its kind "
                "or sigma_rel on the way. Give the EMA of the checkpoint, or start a new run with model.init_from"
            )
        weights = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        try:
            for average in state["averages"].values():
                pl_module.load_state_dict(average)  # for its strict comparison of names and shapes
        except CheckpointError as error:
            raise CheckpointError(f"the checkpoint's EMA does not fit: {error}") from error
        finally:
            pl_module.load_state_dict(weights)
        self._averages, self._updates = state["averages"], state["updates"]


def copied(tensor: Tensor, device: Any) -> Tensor:
    return tensor.detach().to(device, torch.float32, copy=True)


def average_for(trainer: Trainer, use: str) -> EMA | None:
    """The run's EMA where it is to be shown for this use (one of `USES`) and has been updated."""
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, EMA) and use in callback.use_for and callback.updates:
            return callback
    return None


@contextlib.contextmanager
def averaged(trainer: Trainer, module: Any, use: str) -> Iterator[EMA | None]:
    """Inside, the module has the run's average in the place of its weights where it is to be shown for this use."""
    average = average_for(trainer, use)
    with average.swapped_in(module) if average else contextlib.nullcontext():
        yield average
