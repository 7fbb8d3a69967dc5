"""Steers the weight of the prior by what it is there for: how far the class has drifted from the base model."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dreamlit import events
from dreamlit.errors import CombinationError, ConfigError, Faults

MOST_RATIO = 10.0
MEMORY = 20
"""Changes of the weight over which it is told whether they are in vain."""
IN_VAIN = 0.6


class PriorControl(Callback):
    """Raises or lowers `prior_loss_weight` so that the class drifts from the base model no further than is asked.

    The drift is what the prior measures anyway: the mean loss of regularisation samples and class prompts before their
    weight, which for `loss: l2` is the mean square of what the adapter changes in the prediction of the class. Every n
    steps the weight is multiplied by (drift / target) ** (gain * n / 10), with a ratio from 0.1 to 10: the drift begins
    at 0 whatever the weight is. The objective's `prior_loss_weight` is where it starts; `prior/weight` and
    `prior/drift` are in the logs. Both survive a resume.

    No weight holds the drift below what the learning rate alone moves. Where the weight is mostly at `max_weight` and
    the drift above its target, a warning says so, once; the subject is then hardly learned.

    Args:
        target: The drift to hold, above 0. The right one depends on the model: run once with a fixed weight that keeps
            the class well enough, and take the mean of `loss/prior` (or `loss/class`).
        every_n_steps: Optimizer steps between two changes of the weight; the drift is the mean over them.
        gain: How strongly the weight answers within 10 steps, above 0, at most 1. The drift follows the weight by some
            50 steps; a gain that is large for that swings: 0.5 did on the toybox.
        min_weight: The weight never falls below this.
        max_weight: Nor rises above this.
    """

    def __init__(
        self,
        target: float,
        every_n_steps: int = 10,
        gain: float = 0.1,
        min_weight: float = 0.01,
        max_weight: float = 100.0,
    ) -> None:
        faults = Faults("PriorControl", ConfigError)
        for name, value in (("target", target), ("min_weight", min_weight), ("max_weight", max_weight)):
            if not (math.isfinite(value) and value > 0):
                faults.add(f"{name} is {value}; it must be a finite number above 0")
        if every_n_steps < 1:
            faults.add(f"every_n_steps is {every_n_steps}; it must be at least 1")
        if not 0 < gain <= 1:
            faults.add(f"gain is {gain}; it must be above 0 and at most 1")
        if min_weight > max_weight:
            faults.add(f"min_weight is {min_weight}, above max_weight {max_weight}")
        faults.raise_if_any()
        self.target, self.every_n_steps, self.gain = target, every_n_steps, gain
        self.min_weight, self.max_weight = min_weight, max_weight
        self.weight: float | None = None
        """The weight that is in use; None before the run began."""
        self.drift = math.nan
        """The mean over the latest `every_n_steps`."""
        self._sums = torch.zeros(2)
        self._step = 0
        self._in_vain = 0.0
        """Share of the latest changes that ended at `max_weight` with a drift above its target."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: Any = pl_module
        if stage != "fit":
            return
        toward_base = module.regularised and module.objective.prior_target == "base_model"
        if not (toward_base or module.class_prompts):
            raise CombinationError(
                "PriorControl measures the drift on regularisation samples (with prior_target: base_model) or on class "
                "prompts, and there are none; add a dataset with is_regularisation_data: true, or class_words"
            )
        if module.regularised and module.objective.prior_target == "data":
            raise CombinationError("PriorControl needs prior_target: base_model; losses toward photos are no drift")
        start = module.objective.prior_loss_weight
        if not self.min_weight <= start <= self.max_weight:
            raise CombinationError(
                f"prior_loss_weight is {start}, where PriorControl starts; it must be from {self.min_weight} "
                f"to {self.max_weight} (min_weight to max_weight)"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        if self.weight is None:
            self.weight = float(module.objective.prior_loss_weight)
        module.prior_loss_weight = self.weight
        self._sums, self._step = self._sums.to(pl_module.device), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        if trainer.global_step == self._step:
            return  # its optimizer step has more batches
        self._step = trainer.global_step
        if not module.step_skipped:
            self._sums = self._sums + module.step_sums.held
        if self._step % self.every_n_steps == 0:
            self._steer(trainer, module)
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every and self._step % every == 0:
            pl_module.log("prior/weight", module.prior_loss_weight, rank_zero_only=True)
            pl_module.log("prior/drift", self.drift, rank_zero_only=True)

    def _steer(self, trainer: Trainer, module: Any) -> None:
        total, count = self._sums.tolist()
        self._sums = torch.zeros_like(self._sums)
        if not count:
            return
        self.drift = total / count
        ratio = min(max(self.drift / self.target, 1 / MOST_RATIO), MOST_RATIO)
        factor = ratio ** (self.gain * self.every_n_steps / 10)
        weight = min(max(module.prior_loss_weight * factor, self.min_weight), self.max_weight)
        self.weight = module.prior_loss_weight = weight
        before = self._in_vain
        if before <= IN_VAIN:  # else it was told
            self._in_vain += ((weight == self.max_weight and ratio > 1) - before) / MEMORY
        if before <= IN_VAIN < self._in_vain and trainer.is_global_zero:
            events.warned(
                trainer,
                f"PriorControl: the drift ({self.drift:.3g} now) stays above its target of {self.target:.3g} with the "
                f"weight at max_weight {self.max_weight:g}; lower the learning rate or raise the target",
            )

    def state_dict(self) -> dict[str, Any]:
        sums = self._sums.tolist()
        return {"weight": self.weight, "drift": self.drift, "sums": sums, "in_vain": self._in_vain}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weight, self.drift = state_dict["weight"], state_dict["drift"]
        self._in_vain = state_dict.get("in_vain", 0.0)
        self._sums = torch.tensor(state_dict["sums"])
