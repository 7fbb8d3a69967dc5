"""The losses of one optimizer step, over its batches and all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamlit.objective import Losses


class StepSums:
    """Adds up the losses of a step. All values are tensors [] on the device: nothing waits for it."""

    def __init__(self) -> None:
        self._sums = torch.zeros(8)

    def add(self, losses: Losses, first: bool, world_size: int) -> None:
        """Adds one batch, the `first` of its step or not; every rank must call it."""
        one = losses.total.detach().reshape(1)
        sums = torch.cat([losses.sums().flatten(), one, torch.ones_like(one)])
        if world_size > 1:
            torch.distributed.all_reduce(sums)  # Lightning's own reduce waits for the device first
        self._sums = sums if first else self._sums + sums

    @property
    def total(self) -> Tensor:
        """The sum over batches and ranks of what is trained on."""
        return self._sums[6]

    @property
    def loss(self) -> Tensor:
        """Its mean."""
        return self._sums[6] / self._sums[7]

    @property
    def instance(self) -> Tensor:
        """The mean over subject samples, without weights of the prior; NaN without such a sample."""
        return self._sums[0] / self._sums[1]

    @property
    def prior(self) -> Tensor:
        """The mean over regularisation samples; NaN without one."""
        return self._sums[2] / self._sums[3]

    @property
    def of_class(self) -> Tensor:
        """The mean over class prompts; NaN without one."""
        return self._sums[4] / self._sums[5]

    @property
    def held(self) -> Tensor:
        """[2]: sum and number of all losses toward the base model: regularisation samples and class prompts."""
        return self._sums[2:4] + self._sums[4:6]
