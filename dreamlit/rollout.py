"""Scheduled sampling: training on the states that the model itself reaches, not only on noised photos.

In sampling a denoiser meets its own earlier mistakes; in training it never does (exposure bias: Bengio et al. 2015 for
sequences, Ning et al. 2023 for diffusion, whose input perturbation is the cheap rival, see `Objective`). Here chosen
samples are noised to a later timestep and denoised to their own by the current weights; training starts from there.

Symbols as in `process`: x_t = alpha_t x0 + sigma_t eps; lambda = log(alpha / sigma). Shapes: B batch, C channels,
h x w latent, K the most steps of any sample.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dreamlit.errors import ConfigError, Faults, nearest
from dreamlit.process import Process
from dreamlit.seeds import Part, address, unit

Sampler = Literal["unipc", "dpm", "euler", "ddim"]
Strategy = Literal["uniform", "early", "late"]
RampShape = Literal["linear", "cosine"]
RolloutTarget = Literal["corrected", "original"]
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t [n, C, h, w], t [n], rows [n]: which samples of the batch these are) -> prediction [n, C, h, w]."""
Point = tuple[float, float]
"""(alpha, sigma) of one sample at one timestep."""

HIGHEST_ORDER: dict[Sampler, int] = {"unipc": 3, "dpm": 2, "euler": 1, "ddim": 1}
DEFAULT_ORDER = 2
INFERENCE_STEPS = 30
ROUNDING = 1e-3
"""Of positions on a schedule, in timesteps: `t` is a float32."""


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """Scheduled sampling: which samples are trained from the model's own states, and how those are reached.

    Args:
        max_step_offset: Most steps that a sample is denoised by the model before it is trained on; each sample gets a
            number from 1 to this. 0 is off. A batch costs at most this many further forwards without gradient.
        probability: Share of the samples that are rolled out once the ramp is over, from 0 to 1. 0 is off, whatever
            the other options say.
        start_step: Optimizer step before which no sample is rolled out.
        ramp_steps: Optimizer steps from `start_step` in which the probability rises from 0 to `probability`; 0: it is
            there at once.
        ramp_shape: `linear`, or `cosine`, which sets in and ends gently.
        strategy: Which timesteps are rolled out: `uniform`, all alike; `early`, mostly those with little noise: the
            probability falls linearly from `probability` at the first timestep to 0 at the last; `late`, mostly those
            with much noise, the reverse. With early and late, half as many samples are rolled out on average.
        sampler: How the model denoises: `unipc` (Zhao et al. 2023, bh2); `dpm`, DPM-Solver++ (Lu et al. 2022); `ddim`
            (Song et al. 2021) or `euler`, two names of the same first-order step.
        order: Order of the sampler: 1 to 3 for unipc, 1 or 2 for dpm, 1 for the others (default: 2 where there is
            one). A sample's first step is of order 1, its second at most of order 2, and so on.
        step_stride: Timesteps in one step (default: as in sampling with 30 steps, 33 of 1000). 1 makes single
            training timesteps, which drift very little.
        target: What a rolled-out sample is trained toward: `corrected`, the prediction that leads from where it is
            back to its photo; `original`, the one for the noise that it began with. With epsilon prediction the
            corrected target grows large where there is little noise; `strategy: late` or the objective's
            `weighting: min_snr` keep that in bounds.

    Raises:
        ConfigError: naming every value that is wrong and every option that has no effect with the others.
    """

    max_step_offset: int = 0
    probability: float = 0.5
    start_step: int = 0
    ramp_steps: int = 0
    ramp_shape: RampShape = "linear"
    strategy: Strategy = "uniform"
    sampler: Sampler = "unipc"
    order: int | None = None
    step_stride: int | None = None
    target: RolloutTarget = "corrected"

    def __post_init__(self) -> None:
        faults = Faults("The rollout cannot be used")
        _check_values(self, faults)
        if not faults:
            _check_effects(self, faults)
        faults.raise_if_any()

    @property
    def on(self) -> bool:
        """Whether any sample is ever rolled out."""
        return self.max_step_offset > 0 and self.probability > 0

    def stride(self, process: Process) -> int:
        """Timesteps in one step of the rollout.

        Raises:
            ConfigError: a `step_stride` that leaves no room for one step.
        """
        longest = int(process.last_position)
        stride = max(1, process.num_timesteps // INFERENCE_STEPS) if self.step_stride is None else self.step_stride
        if stride > longest:
            raise ConfigError(f"rollout.step_stride is {stride}: the model's timesteps allow 1 to {longest}")
        return stride

    def probability_at(self, step: int) -> float:
        """The ramp: share of the samples that are rolled out at the optimizer step `step`, before `strategy`. Pure."""
        if not self.on or step < self.start_step:
            return 0.0
        if step >= self.start_step + self.ramp_steps:
            return self.probability
        share = (step - self.start_step) / self.ramp_steps
        return self.probability * (share if self.ramp_shape == "linear" else (1 - math.cos(math.pi * share)) / 2)

    def offset(self, process: Process, seed: int, sample_id: Part, visit: int, t: float, step: int) -> int:
        """Steps that one visit to a sample is rolled out, 0 for none; fewer than drawn where the timesteps end.

        Pure: the draw is addressed by (seed, sample, visit), so neither the batch, the rank nor a resumed run matters.
        A sample that is rolled out at some probability is so at every higher one.

        Args:
            t: the timestep of the visit, as in `Objective.draw`.
            step: the optimizer step, for the ramp.
        """
        position = float(process.position(torch.tensor([t]))[0])
        share = position / process.last_position
        favour = {"uniform": 1.0, "early": 1 - share, "late": share}[self.strategy]
        if unit(seed, "rollout", sample_id, visit) >= self.probability_at(step) * favour:
            return 0
        drawn = 1 + address(seed, "rollout_steps", sample_id, visit) % self.max_step_offset
        return max(0, min(drawn, int((_last_start(process, t) - position) // self.stride(process))))

    def offsets(self, process: Process, seed: int, keys: Sequence[str], t: Tensor, step: int) -> Tensor:
        """`offset` of each sample by its key in `Batch.keys` ("sample#visit") and its t in [B]: int64 [B], beside `t`.

        Waits for the device, unless nothing is rolled out at `step`.
        """
        if self.probability_at(step) == 0:
            return torch.zeros(len(keys), dtype=torch.int64, device=t.device)
        visits = [key.rpartition("#") for key in keys]
        pairs = zip(visits, t.tolist(), strict=True)
        found = [self.offset(process, seed, sample, int(visit), time, step) for (sample, _, visit), time in pairs]
        return torch.tensor(found, dtype=torch.int64, device=t.device)


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


def _last_start(process: Process, t: float) -> float:
    """The last position where the prediction says something of x0: not pure noise with epsilon prediction."""
    last = torch.tensor([type(t)(process.last_position)])
    blind = bool((process.snr(last) == 0) & (process.eps_error_scale(last) > 0))
    return process.last_position - int(blind)


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


def _check_values(options: RolloutOptions, faults: Faults) -> None:
    choices = {"ramp_shape": RampShape, "strategy": Strategy, "sampler": Sampler, "target": RolloutTarget}
    for name, literal in choices.items():
        value = getattr(options, name)
        if value not in get_args(literal):
            faults.add(f"{name} is {value!r}; {nearest(str(value), get_args(literal))}")
    for name, least in {"max_step_offset": 0, "start_step": 0, "ramp_steps": 0, "order": 1, "step_stride": 1}.items():
        value = getattr(options, name)
        if value is None and name in ("order", "step_stride"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            faults.add(f"{name} is {value!r}: it must be a whole number, at least {least}")
    value = options.probability
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:  # also false for NaN
        faults.add(f"probability is {value!r}: it must be a number from 0 to 1")


def _check_effects(options: RolloutOptions, faults: Faults) -> None:
    """Options that are set but do nothing. A probability of 0 is a switch: the rest may stay as it is."""
    highest, order = HIGHEST_ORDER[options.sampler], options.order or 1
    if order > highest:
        faults.add(f"order is {order}: with sampler: {options.sampler} it must be at most {highest}")
    if options.probability == 0:
        return
    if options.max_step_offset == 0:
        fields = dataclasses.fields(options)
        idle = [field.name for field in fields if getattr(options, field.name) != field.default]
        if idle:
            faults.add(f"{', '.join(idle)} has no effect with max_step_offset: 0; set that too, or probability: 0")
        return
    if min(order, highest) > options.max_step_offset:
        faults.add(f"order is {order}: it is only reached by as many steps, so max_step_offset must be at least that")
    if options.ramp_shape != "linear" and options.ramp_steps == 0:
        faults.add(f"ramp_shape: {options.ramp_shape} has no effect with ramp_steps: 0; set ramp_steps, or remove it")
