"""Scheduled sampling: training on the states that the model itself reaches, not only on noised photos.

In sampling a denoiser meets its own earlier mistakes; in training it never does (exposure bias: Bengio et al. 2015 for
sequences, Ning et al. 2023 for diffusion, whose input perturbation is the cheap rival, see `Objective`). Here chosen
samples are noised to a later timestep and denoised to their own by the current weights; training starts from there.

Symbols as in `process`: x_t = alpha_t x0 + sigma_t eps; lambda = log(alpha / sigma). Shapes: B batch, C channels,
h x w latent, K the most steps of any sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dreamlit.process import Process
from dreamlit.rollout_options import HIGHEST_ORDER, RolloutOptions

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t [n, C, h, w], t [n], rows [n]: which samples of the batch these are) -> prediction [n, C, h, w]."""
Point = tuple[float, float]
"""(alpha, sigma) of one sample at one timestep."""

DEFAULT_ORDER = 2
ROUNDING = 1e-3
"""Of positions on a schedule, in timesteps: `t` is a float32."""


@torch.no_grad()
def rollout(
    predict: Predict, process: Process, x0: Tensor, eps: Tensor, t: Tensor, offsets: Tensor, options: RolloutOptions
) -> Tensor:
    """x_t of each sample, reached by the model from `offsets` steps later: [B, C, h, w], at least float32, no gradient.

    All samples end together, so that there are as many forwards as the largest offset, each with the samples that have
    begun. A step from s to t takes x0 for a polynomial in lambda in the exact solution
    x_t = sigma_t / sigma_s x_s + sigma_t integral of e^lambda x0(lambda) dlambda (Lu et al. 2022, proposition 4.1),
    which holds for every process of the form x_t = alpha_t x0 + sigma_t eps: one code for all of them.

    Args:
        predict: the denoiser; see `Predict`. Its answer may have any floating type.
        x0: clean latents, [B, C, h, w].
        eps: the noise that x_t is made from (`Batch.input_eps`), [B, C, h, w].
        t: timesteps to end at, [B].
        offsets: steps of each sample, int64 [B]. Where 0, the result is exactly `process.noise(x0, eps, t)`.
        options: gives the sampler, its order and the stride.

    Raises:
        ValueError: offsets below 0 or beyond the last timestep, or of another shape than `t`.
    """
    stride = options.stride(process)
    steps = _checked_steps(process, t, offsets, stride)
    depth = max(steps, default=0)
    grid = torch.stack([_later(process, t, stride * offsets.clamp(max=depth - j)) for j in range(depth + 1)])
    x = process.noise(x0, eps, grid[0])  # grid: [K + 1, B]
    points = _points(process, grid)
    order = DEFAULT_ORDER if options.order is None else options.order
    order = min(order, HIGHEST_ORDER[options.sampler])

    def advance(state: Tensor, rows: list[int], end: int, end_known: bool) -> Tensor:
        """The step of `rows` that ends at place `end` of the grid, from as many predictions as each row has made."""
        places = [range(end, max(depth - steps[b], end - order) - 1, -1) for b in rows]
        weights = [step_weights([points[j][b] for j in js], end_known) for b, js in zip(rows, places, strict=True)]
        return _advance(state, clean, rows, weights)

    base, clean = x, []  # the state that a step departs from; x0 predictions, newest first
    for j in range(depth):
        begun = [b for b, k in enumerate(steps) if k >= depth - j]
        rows = torch.tensor(begun, device=x.device)
        prediction = predict(x[rows], grid[j][rows], rows).to(x.dtype)
        latest = torch.zeros_like(x)
        latest[rows] = process.x0_from(prediction, x[rows], grid[j][rows])
        clean = [latest, *clean[:order]]
        if options.sampler == "unipc":  # do the last step again, now that the prediction at its end is known
            before = [b for b in begun if steps[b] > depth - j]
            base = advance(base, before, end=j, end_known=True)
        else:
            base = x
        x = advance(base, begun, end=j + 1, end_known=False)
    return x


def rollout_target(
    process: Process, x0: Tensor, eps: Tensor, t: Tensor, x_t: Tensor, offsets: Tensor, options: RolloutOptions
) -> Tensor:
    """What the denoiser should predict at the `x_t` that `rollout` returned: [B, C, h, w].

    Args:
        eps: the noise that targets are made from (`Batch.eps`), [B, C, h, w].
    """
    target = process.target(x0, eps, t)
    if options.target == "original":
        return target
    return torch.where((offsets > 0).view(-1, 1, 1, 1), process.target_at(x_t, x0, t), target)


def step_weights(points: Sequence[Point], end_known: bool) -> tuple[float, list[float]]:
    """One step of a multistep sampler as a sum: x_end = ratio * x_start + sum of weight_i * x0 prediction_i.

    The order of the step is the number of points less one. Order 1 is DDIM (Song et al. 2021), the Euler step in
    x / alpha over sigma / alpha, and in x over sigma for flow matching. Order 2 is DPM-Solver++(2M) (Lu et al. 2022,
    algorithm 2), which UniP-2 equals. In general this is UniP with B2(h) = e^h - 1, and UniC with `end_known` (Zhao et
    al. 2023), where the order is that of the corrected predictor.

    Args:
        points: where the step ends, where it starts, then the places of earlier predictions, backwards. Points where
            lambda is infinite (pure noise, or no noise) are used for first-order steps only.
        end_known: whether the prediction at the end is known, the corrector of UniPC; its weight then comes first.
    """
    (alpha, sigma), (alpha_start, sigma_start) = points[:2]
    ratio = sigma / sigma_start
    gain = alpha - alpha_start * ratio  # alpha (1 - e^-h), and right where h is infinite
    end, start, *earlier = (_half_log_snr(*point) for point in points)
    h = end - start
    nodes = [(place - start) / h for place in earlier if math.isfinite(place) and math.isfinite(h)]
    if end_known:
        nodes.append(1.0)
    slopes = [gain * share / node for share, node in zip(_node_shares(nodes, h), nodes, strict=True)]
    here = gain - sum(slopes)
    return ratio, [slopes[-1], here, *slopes[:-1]] if end_known else [here, *slopes]


def _node_shares(nodes: list[float], h: float) -> list[float]:
    """rho of UniPC: the share of each divided difference, so that powers of (lambda - start) / h integrate exactly."""
    if len(nodes) < 2:
        return [0.5] * len(nodes)  # the papers' simplification: it keeps the order, and holds for an infinite h too
    moments, moment = [], 1.0  # means of the powers 1, 2, ... over the step, weighted by e^lambda
    for power in range(1, len(nodes) + 1):
        moment = -1 / math.expm1(-h) - power * moment / h  # by parts
        moments.append(moment)
    powers = torch.tensor([[node**power for node in nodes] for power in range(len(nodes))], dtype=torch.float64)
    return torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()


def _advance(state: Tensor, clean: list[Tensor], rows: list[int], weights: list[tuple[float, list[float]]]) -> Tensor:
    """`state` with `rows` moved by their `step_weights`; a row of lower order has fewer.

    Sums of products, no matrix product: autocast would round that to half precision.
    """
    if not rows:
        return state
    width = max(len(of_clean) for _, of_clean in weights)
    padded = [[ratio, *of_clean, *[0.0] * (width - len(of_clean))] for ratio, of_clean in weights]
    table = torch.tensor(padded, dtype=state.dtype, device=state.device).T.view(1 + width, -1, 1, 1, 1)
    index = torch.tensor(rows, device=state.device)
    moved = table[0] * state[index]
    for weight, prediction in zip(table[1:], clean, strict=False):
        moved = moved + weight * prediction[index]
    return state.index_copy(0, index, moved)


def _points(process: Process, grid: Tensor) -> list[list[Point]]:
    """(alpha, sigma) at each time of `grid` [K + 1, B], as [K + 1][B] numbers; float64, hence on the CPU."""
    alpha, sigma = process.alpha_sigma(grid.cpu().flatten(), torch.float64)
    width = grid.shape[1]
    pairs = list(zip(alpha.flatten().tolist(), sigma.flatten().tolist(), strict=True))
    return [pairs[j * width : (j + 1) * width] for j in range(grid.shape[0])]


def _half_log_snr(alpha: float, sigma: float) -> float:
    """lambda = log(alpha / sigma)."""
    if alpha == 0 or sigma == 0:
        return -math.inf if alpha == 0 else math.inf
    return math.log(alpha) - math.log(sigma)


def _later(process: Process, t: Tensor, distance: Tensor) -> Tensor:
    """The timesteps at `distance` [B] on the schedule from `t` [B], which itself stays to the bit: [B]."""
    return torch.where(distance == 0, t, process.at_position(process.position(t) + distance))


def _checked_steps(process: Process, t: Tensor, offsets: Tensor, stride: int) -> list[int]:
    if offsets.shape != t.shape or offsets.is_floating_point():
        raise ValueError(f"offsets is {offsets.dtype} of shape {list(offsets.shape)}: integers of {list(t.shape)}")
    starts = (process.position(t) + stride * offsets).tolist()
    if bool((offsets < 0).any()) or max(starts, default=0) > process.last_position + ROUNDING:
        raise ValueError(
            f"offsets {offsets.tolist()} with a stride of {stride} start at {starts}: "
            f"offsets must be at least 0 and starts at most {process.last_position}"
        )
    return offsets.tolist()
