"""The learning-rate schedule of a run, and optimizer options that may change when it is resumed."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

from torch.optim import Optimizer

from dreamlit.errors import CombinationError

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


def check_schedule(name: Schedule, warmup_steps: int) -> None:
    """Raises CombinationError unless the schedule has use for the warm-up."""
    if warmup_steps < 0:
        raise CombinationError(f"model.lr_warmup_steps is {warmup_steps}; it must be at least 0")
    if name == "constant" and warmup_steps:
        raise CombinationError(
            f"model.lr_warmup_steps is {warmup_steps}, but lr_scheduler 'constant' has no warm-up; "
            "use 'constant_with_warmup'"
        )


def schedule(optimizer: Optimizer, name: Schedule, warmup_steps: int, steps: float) -> Any:
    """A scheduler that is stepped once for each optimizer step.

    Args:
        steps: Optimizer steps of the whole run; infinite where only the time ends it.

    Raises:
        CombinationError: when the schedule must know the end and there is none.
    """
    from diffusers.optimization import SchedulerType, get_scheduler

    endless = math.isinf(steps)
    if endless and not name.startswith("constant"):
        raise CombinationError(
            f"model.lr_scheduler {name!r} must know the number of steps, and trainer.max_time alone "
            "does not say it. Set trainer.max_steps or max_epochs too, or lr_scheduler: constant"
        )
    return get_scheduler(
        SchedulerType(name),
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=None if endless else int(steps),
    )


def apply_options(fresh: Optimizer, checkpoint: dict[str, Any]) -> None:
    """Puts the options of `fresh` into a checkpoint's optimizer, so that changed ones take effect on resume.

    The learning rate keeps its place in the schedule: it is scaled by new over old.
    """
    options, rate = dict(fresh.param_groups[0]), fresh.param_groups[0]["lr"]
    # Some optimizers keep their progress in the group too; an option is what the constructor takes.
    named = inspect.signature(type(fresh)).parameters.keys() & options.keys() - {"params", "lr"}
    for saved in checkpoint.get("optimizer_states", []):
        for group in saved["param_groups"]:
            group.update({name: options[name] for name in named})
            if group.get("initial_lr", group["lr"]) == rate:
                continue
            scale = rate / group["initial_lr"] if group.get("initial_lr") else 0.0
            group["lr"], group["initial_lr"] = (group["lr"] * scale if scale else rate), rate
    for saved in checkpoint.get("lr_schedulers", []):
        saved["base_lrs"] = [rate] * len(saved["base_lrs"])
