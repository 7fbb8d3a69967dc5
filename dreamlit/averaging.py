"""The arithmetic of averaged weights: how fast an average forgets, and averages of any length made after the run.

Steps are counted in updates of the average. After update t (1, 2, ...) an average is the weighted sum of the weights
that it was shown; those weights of the sum are its profile.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dreamlit.errors import CheckpointError, ConfigError, Faults

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

SIGMA_REL_MAX = 12**-0.5
"""The width of a plain mean of everything seen (gamma = 0), about 0.2887."""


def warm_decay(decay: float, every: int, updates: int) -> float:
    """The share of the old average that stays at the next update: min(decay^every, (1 + n) / (10 + n)).

    The ramp lets an average of few updates n forget its first weights. It counts updates, not steps, so that the
    average reaches back over the same share of the run (about a ninth) whatever `every` is.

    Args:
        decay: What stays of the average after one optimizer step, in [0, 1).
        every: Optimizer steps between two updates, at least 1.
        updates: Updates made before this one, n.
    """
    return min(decay**every, (1 + updates) / (10 + updates))


def power_decay(gamma: float, updates: int) -> float:
    """The share of the old average that stays at the next update: (1 - 1/t)^(gamma + 1) with t = `updates` + 1.

    Karras et al. 2024, arXiv 2312.02696, section 3.1. The first update gives 0: the average is then what it is shown.
    k steps in one update, (1 - k/s)^(gamma + 1) at step s = k t, are the same number: `every` does not enter.
    """
    return (updates / (updates + 1)) ** (gamma + 1)


def sigma_rel_of(gamma: float) -> float:
    """The standard deviation of the profile tau^gamma on [0, 1], its width as a share of the run."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile of relative width `sigma_rel`: 0.05 gives 16.97 and 0.10 gives 6.94.

    The positive root of gamma^3 + 7 gamma^2 + (16 - s) gamma + (12 - s) = 0 with s = sigma_rel^-2 (Karras et al. 2024).

    Raises:
        ConfigError: unless 0 < sigma_rel <= 12^-1/2.
    """
    import numpy

    if not 0 < sigma_rel <= SIGMA_REL_MAX + 1e-12:
        raise ConfigError(f"sigma_rel is {sigma_rel}; it must be above 0 and at most {SIGMA_REL_MAX:.4f}, a plain mean")
    s = float(sigma_rel) ** -2
    return max(float(numpy.roots([1, 7, 16 - s, 12 - s]).real.max()), 0.0)  # the other two are negative


def profile(sigma_rel: float, updates: int) -> numpy.ndarray:
    """How much each shown set of weights counts after so many updates: float64 [updates], sum 1.

    The exact product of the decays: update j counts (j^(gamma+1) - (j-1)^(gamma+1)) / t^(gamma+1).
    """
    import numpy

    reached = (numpy.arange(updates + 1, dtype=numpy.float64) / updates) ** (gamma_of(sigma_rel) + 1)
    return numpy.diff(reached)


class Snapshot(NamedTuple):
    """An average as it was after some of the updates."""

    sigma_rel: float
    updates: int
    weights: dict[str, Tensor]


def mixing(known: Sequence[tuple[float, int]], sigma_rel: float, updates: int) -> numpy.ndarray:
    """Factors of known averages whose sum comes nearest to another one, by least squares of the profiles.

    Karras et al. 2024, appendix C. The paper integrates continuous profiles; the sums here are those that a run really
    makes, so that an average that is among the known ones is found exactly.

    Args:
        known: (sigma_rel, updates) of each known average.
        sigma_rel: Width of the wanted one.
        updates: When the wanted one ends.

    Returns:
        float64 [len(known)].
    """
    import numpy

    columns = numpy.zeros((max(updates, *(end for _, end in known)), len(known)))
    for column, (width, end) in enumerate(known):
        columns[:end, column] = profile(width, end)
    wanted = numpy.zeros(len(columns))
    wanted[:updates] = profile(sigma_rel, updates)
    return numpy.linalg.lstsq(columns, wanted, rcond=None)[0]


def reconstruct(snapshots: Iterable[Snapshot], sigma_rel: float, updates: int | None = None) -> dict[str, Tensor]:
    """The average that a run would have had with another `sigma_rel`, from snapshots of those that it kept.

    Two widths with eight or more snapshots each give any width between them to a fraction of a percent.

    Args:
        snapshots: Of one run, as `read_snapshots` gives them.
        sigma_rel: Width of the wanted average, in (0, 12^-1/2].
        updates: When it ends, counted in updates; left out, at the last snapshot.

    Returns:
        float32 tensors by parameter name; summed in float64.

    Raises:
        CheckpointError: when there is no snapshot, or they are of different parameters.
        ConfigError: when the width is out of range, or the end lies outside the snapshots.
    """
    import torch

    chosen = list(snapshots)
    if not chosen:
        raise CheckpointError("there are no snapshots to make an average of")
    last = max(snapshot.updates for snapshot in chosen)
    updates = last if updates is None else updates
    if not 1 <= updates <= last:
        raise ConfigError(f"updates is {updates}; the snapshots reach from 1 to {last}")
    _refuse_mixture(chosen)
    factors = mixing([(snapshot.sigma_rel, snapshot.updates) for snapshot in chosen], sigma_rel, updates)
    sums = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in chosen[0].weights.items()}
    for factor, snapshot in zip(factors, chosen, strict=True):
        for name, total in sums.items():
            total.add_(snapshot.weights[name].to("cpu", torch.float64), alpha=float(factor))
    return {name: total.float() for name, total in sums.items()}


def _refuse_mixture(snapshots: Sequence[Snapshot]) -> None:
    faults = Faults("these snapshots are not of one run", CheckpointError)
    first = {name: tensor.shape for name, tensor in snapshots[0].weights.items()}
    for snapshot in snapshots[1:]:
        shapes = {name: tensor.shape for name, tensor in snapshot.weights.items()}
        wrong = sorted(name for name in first.keys() | shapes.keys() if first.get(name) != shapes.get(name))
        if wrong:
            faults.add(f"sigma_rel {snapshot.sigma_rel:g}, update {snapshot.updates}: {wrong[0]} and others differ")
    faults.raise_if_any()


# files ----------------------------------------------------------------------------------------------------------------


def write_snapshot(folder: pathlib.Path, step: int, snapshot: Snapshot) -> pathlib.Path:
    """Writes a snapshot, whole or not at all, as `step-NNNNNN-sigma-W.safetensors`; returns the path."""
    from dreamlit.export import on_cpu, write_atomically

    path = folder / f"step-{step:06d}-sigma-{snapshot.sigma_rel:g}.safetensors"
    facts: dict[str, Any] = {"sigma_rel": snapshot.sigma_rel, "updates": snapshot.updates, "step": step}
    metadata = {f"dreamlit.{name}": repr(value) for name, value in facts.items()}
    write_atomically(path, {name: on_cpu(tensor) for name, tensor in snapshot.weights.items()}, metadata)
    return path


def read_snapshots(folder: str | pathlib.Path) -> list[Snapshot]:
    """All snapshots in a folder, in order of their files' names.

    Raises:
        CheckpointError: naming every file that is damaged or no snapshot, or saying that the folder holds none.
    """
    from safetensors.torch import load_file

    from dreamlit.formats import read_header

    found, faults = [], Faults(f"snapshots in {folder} cannot be used", CheckpointError)
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        try:
            facts = read_header(path).metadata
            found.append(
                Snapshot(float(facts["dreamlit.sigma_rel"]), int(facts["dreamlit.updates"]), load_file(str(path)))
            )
        except CheckpointError as error:
            faults.add(str(error))
        except (KeyError, ValueError):
            faults.add(f"{path} says neither its sigma_rel nor its updates: it is no snapshot of an average")
    faults.raise_if_any()
    if not found:
        raise CheckpointError(f"{folder} holds no snapshots; EMA writes them where snapshots_every_n_steps is set")
    return found
