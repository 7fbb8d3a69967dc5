"""Optimizer steps whose loss or gradient is not finite: which samples they held, and whether the run goes on."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamlit import events
from dreamlit.errors import ConfigError, DreamlitError
from dreamlit.types import Batch

MOST_LINES = 20


class NonFiniteError(DreamlitError):
    """A loss, gradient or weight of the training is NaN or infinite."""


class Seen(NamedTuple):
    """One batch of the optimizer step in progress. Tensors stay on the device: nothing waits for them.

    keys: `dataset/path#visit` of each sample.
    t: timesteps [B].
    losses: of each sample alone [B].
    """

    keys: list[str]
    t: Tensor
    losses: Tensor


class NonFinite:
    """Watches the optimizer steps of a run; leaves out those that are not finite, up to a number, then stops the run.

    Every rank comes to the same verdict: the loss that is judged is summed over all ranks, and after the strategy has
    averaged them all hold the same gradients.

    Args:
        max_skipped_steps: Steps that the run may leave out.

    Raises:
        ConfigError: when that is not a whole number of at least 0.
    """

    def __init__(self, max_skipped_steps: int) -> None:
        if isinstance(max_skipped_steps, bool) or not isinstance(max_skipped_steps, int) or max_skipped_steps < 0:
            raise ConfigError(f"model.max_skipped_steps is {max_skipped_steps!r}; it must be a whole number from 0 on")
        self.max_skipped_steps = max_skipped_steps
        self.skipped = 0
        """Steps left out since the run began, those before a resume too."""
        self._window: list[Seen] = []
        self._loss = math.nan  # of the step that was judged last

    def see(self, batch: Batch, losses: Tensor, first: bool) -> None:
        """Takes note of a batch; `first` in its optimizer step."""
        if first:
            self._window.clear()
        self._window.append(Seen(batch.keys, batch.t, losses))

    def is_finite(self, loss: Tensor, gradients: list[Tensor]) -> bool:
        """Whether a step may be taken. Waits for the device, once.

        Args:
            loss: Of all batches and all ranks, summed: [].
            gradients: See `judged_gradients`.
        """
        self._loss, lost = torch.stack([loss.float(), holds_non_finite(gradients, loss.device)]).tolist()
        return math.isfinite(self._loss) and not lost

    def skip(self, trainer: Any, module: Any) -> None:
        """Counts a step that is not finite and tells of it.

        Raises:
            NonFiniteError: when no more may be left out, or leaving this one out is of no use. On every rank.
        """
        step, root = trainer.global_step, trainer.default_root_dir
        text = f"optimizer step {step + 1} is not finite: {self._what(module)}. {self._samples(trainer.world_size)}\n"
        if lost := lost_weights(module):
            text += f"{lost} trained weights are not finite themselves, so that no later step can be. "
            raise NonFiniteError(text + ways_out(root))
        if self.skipped >= self.max_skipped_steps:
            if self.skipped:
                text += f"model.max_skipped_steps is {self.max_skipped_steps}, and as many were left out already. "
            few = "" if self.max_skipped_steps else ". model.max_skipped_steps: 3 leaves out a few such steps"
            raise NonFiniteError(f"{text}Nothing of this step was kept. {ways_out(root)}{few}")
        self.skipped += 1
        text += f"The step was left out, as number {self.skipped} of at most {self.max_skipped_steps} in this run"
        if trainer.is_global_zero:
            events.warned(trainer, text)

    def _what(self, module: Any) -> str:
        if not math.isfinite(self._loss):
            return f"the loss is {self._loss}"
        weights = module.adapter.parameters().values()
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        return f"the norm of the gradient is {float(norm)}"

    def _samples(self, world_size: int) -> str:
        """The samples of all ranks whose loss is not finite, or all samples where only the gradient is not."""
        own = [
            row for seen in self._window for row in zip(seen.keys, seen.t.tolist(), seen.losses.tolist(), strict=True)
        ]
        ranks: list[Any] = [own]
        if world_size > 1:
            ranks = [None] * world_size
            torch.distributed.all_gather_object(ranks, own)
        every = [row for rows in ranks for row in rows]
        bad = [row for row in every if not math.isfinite(row[2])]
        head = f"Not finite are {len(bad)} of its {len(every)} samples:" if bad else "The losses of its samples are:"
        shown, rest = (bad or every)[:MOST_LINES], len(bad or every) - MOST_LINES
        lines = [sample_line(*row) for row in shown] + ([f"and {rest} more"] if rest > 0 else [])
        return "\n".join([head, *(f"  - {line}" for line in lines)])


def judged_gradients(trainer: Any, optimizer: Any) -> list[Tensor]:
    """The gradients that a step is about to be taken with; none under 16-mixed.

    Its gradient scaler makes them overflow on purpose, to find the largest scale, and leaves out those steps itself.
    """
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return []
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    return [gradient for weight in weights if (gradient := weight.grad) is not None]


@torch.no_grad()
def holds_non_finite(gradients: list[Tensor], device: torch.device) -> Tensor:
    """1 where any value is NaN or infinite, else 0: [], on `device`, which is theirs. Leaves them as they are.

    PyTorch's gradient scaler has a kernel that looks at all of them in one call; its scale is 1 here. On a CPU their
    norm takes two to seven times as long (1120 and 160 tensors).
    """
    if not gradients:
        return torch.zeros((), device=device)
    if device.type not in ("cpu", "cuda"):  # which may lack that kernel
        return (~torch.nn.utils.get_total_norm(gradients).isfinite()).float()
    found = torch.zeros((), device=device)
    look = torch._amp_foreach_non_finite_check_and_unscale_  # pyright: ignore[reportPrivateImportUsage]
    look(gradients, found, torch.ones_like(found))
    return found


def known_first(result: Any, closure: Callable[[], Any]) -> Callable[[], Any]:
    """A closure that gives `result` the first time; an optimizer that calls it again has `closure` evaluated."""
    known = [result]
    return lambda: known.pop() if known else closure()


def sample_line(key: str, t: float, loss: float) -> str:
    """What a user needs to find one sample: `dataset/path` is the image in its dataset."""
    name, _, visit = key.rpartition("#")
    dataset, _, path = name.partition("/")
    return f"{path} of dataset {dataset!r} (visit {visit}), timestep {t:g}, loss {loss:.6g}"


def lost_weights(module: Any) -> int:
    """How many trained tensors hold a value that is not finite."""
    return sum(not bool(weight.isfinite().all()) for weight in module.adapter.parameters().values())


def ways_out(root: str) -> str:
    folder = pathlib.Path(root) / "checkpoints"
    on = {"step-*.ckpt": "the last one goes on with --ckpt_path last", "best.ckpt": "--ckpt_path best goes on from it"}
    kept = next((on[files] for files in on if any(folder.glob(files))), None)
    resume = f"The checkpoints are as they were; {kept}" if kept else "No checkpoint was written yet"
    return (
        f"{resume}. Look at the images (dreamlit plan --preview FOLDER shows them as they are trained on), lower the "
        "learning rate, set trainer.gradient_clip_val, or use bf16-mixed in place of 16-mixed"
    )
