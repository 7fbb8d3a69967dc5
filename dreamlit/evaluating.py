"""The arithmetic of an evaluation: the losses of a fixed grid and their means."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dreamlit.types import Batch

Key = TypeVar("Key", int, str)

WEIGHTS, AVERAGE = "", "-ema"
"""The passes over the grid, by what stands behind the metric's name: with the trained weights, with their average."""
NAMES = {WEIGHTS: "raw", AVERAGE: "ema"}
"""The passes by their names in a run's `evaluation.jsonl`."""


Part = tuple[list[str], Tensor, Tensor, Tensor]
"""Of one batch: keys, timesteps [B], weights [B], losses [B]."""


class Cell(NamedTuple):
    """One image with one noise at one noise level.

    key: `dataset/path@level.noise`, which no other cell has.
    t: timestep, in the units of the process.
    loss: the objective's loss of this sample alone, with its mask; `prior_loss_weight` is not in it.
    """

    key: str
    t: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one pass over the grid measured. Sums are exact, so no mean depends on the order or the number of ranks."""

    cells: tuple[Cell, ...]

    @property
    def mean(self) -> float:
        """The mean loss over all cells; NaN without a cell."""
        return mean(cell.loss for cell in self.cells)

    def bands(self, count: int, borders: tuple[float, float]) -> dict[str, float]:
        """The mean loss in each of `count` equal bands of the timesteps that has a cell: `0-250` is t from 0 to 249.

        borders: where the timesteps begin and end (`Process.borders`).
        """
        first, end = borders
        edges = [round(first + k * (end - first) / count) for k in range(count + 1)]
        names = [f"{low}-{high}" for low, high in itertools.pairwise(edges)]

        def band(cell: Cell) -> int:
            return sum(cell.t >= edge for edge in edges[1:-1])

        return {names[number]: value for number, value in sorted(self._means(band).items())}

    def images(self) -> dict[str, float]:
        """The mean loss of each image, by its sample id `dataset/path`."""
        return dict(sorted(self._means(lambda cell: cell.key.rpartition("@")[0]).items()))

    @property
    def levels(self) -> int:
        """How many noise levels each image was measured at."""
        return len({cell.key.rpartition("@")[2].partition(".")[0] for cell in self.cells})

    def _means(self, of: Callable[[Cell], Key]) -> dict[Key, float]:
        groups: dict[Key, list[float]] = defaultdict(list)
        for cell in self.cells:
            groups[of(cell)].append(cell.loss)
        return {key: mean(losses) for key, losses in groups.items()}


def mean(values: Iterable[float]) -> float:
    """The mean, with a sum that is rounded once (`math.fsum`), whatever the order; NaN of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


class Evaluation:
    """Collects the losses of the passes over the grid as they come, on the device, and fetches them once at the end.

    Args:
        passes: Names of the passes, in the order of their loaders.
    """

    def __init__(self, passes: Iterable[str]) -> None:
        self._parts: dict[str, list[Part]] = {name: [] for name in passes}
        self._measured: dict[str, Measured] | None = None

    def add(self, number: int, batch: Batch, per_sample: Tensor) -> None:
        """Takes the losses [B] of a batch in pass `number`; samples of weight 0 do not count."""
        list(self._parts.values())[number].append((batch.keys, batch.t, batch.weight, per_sample.detach()))

    def measured(self, world_size: int = 1) -> dict[str, Measured]:
        """The passes by name, each with the cells of all ranks; every rank must call it. Calling it again costs
        nothing."""
        if self._measured is None:
            own = {name: [cell for part in parts for cell in cells_of(*part)] for name, parts in self._parts.items()}
            ranks = [own]
            if world_size > 1:
                ranks = [own] * world_size
                torch.distributed.all_gather_object(ranks, own)
            together = {name: [cell for rank in ranks for cell in rank[name]] for name in own}
            self._measured = {name: Measured(tuple(sorted(cells))) for name, cells in together.items()}
        return self._measured


def cells_of(keys: list[str], t: Tensor, weight: Tensor, losses: Tensor) -> list[Cell]:
    """The cells of a batch that count."""
    columns = keys, t.tolist(), losses.tolist(), weight.tolist()
    return [Cell(key, at, loss) for key, at, loss, counts in zip(*columns, strict=True) if counts > 0]


def told(measured: Measured, bands: int, borders: tuple[float, float]) -> dict[str, Any]:
    """One pass as the file has it; a loss that is not finite is null."""
    parts = {"bands": measured.bands(bands, borders) if bands else {}, "images": measured.images()}
    finite = {name: {key: number(value) for key, value in part.items()} for name, part in parts.items()}
    return {"loss": number(measured.mean), "cells": len(measured.cells), "levels": measured.levels, **finite}


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None
