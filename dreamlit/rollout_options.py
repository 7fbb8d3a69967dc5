"""Which samples of scheduled sampling are rolled out, and how far; the checks of its values. `rollout` does it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dreamlit.errors import ConfigError, Faults, nearest
from dreamlit.flow import FlowMatching
from dreamlit.process import Process
from dreamlit.seeds import Part, address, unit

Sampler = Literal["unipc", "dpm", "euler", "ddim"]
Strategy = Literal["uniform", "early", "late"]
RampShape = Literal["linear", "cosine"]
RolloutTarget = Literal["corrected", "original"]

HIGHEST_ORDER: dict[Sampler, int] = {"unipc": 3, "dpm": 2, "euler": 1, "ddim": 1}
INFERENCE_STEPS = 30


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
        anti_drift: ReflexFlow's anti-drift rectification for flow models, its beta_1: weight of |v / |v| - a / |a||^2,
            where v is the prediction for a rolled-out sample and a = x_t - x0 the direction that leads from where it
            is back to its photo. 0 is off; the paper uses 10.
        frequency_compensation: ReflexFlow's second term for flow models, its alpha: the loss of a cell is multiplied
            by 1 + alpha b / |b|_1, with b what the model predicts on the path less what it predicts where it drifted
            to. 0 is off; the paper's 1 changes a weight by about one over the number of the latent's values.

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
    anti_drift: float = 0.0
    frequency_compensation: float = 0.0

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

    @property
    def reflex(self) -> bool:
        """Whether one of ReflexFlow's terms is on."""
        return self.anti_drift > 0 or self.frequency_compensation > 0

    def check_process(self, process: Process) -> None:
        """Refuses what the model's process cannot do.

        Raises:
            ConfigError: a `step_stride` that leaves no room for one step, a term of ReflexFlow without a flow.
        """
        self.stride(process)
        if self.reflex and not isinstance(process, FlowMatching):
            raise ConfigError(
                "anti_drift and frequency_compensation are terms for flow matching: with this model's noise a "
                "prediction has no direction that leads to the photo; remove them"
            )

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


def _last_start(process: Process, t: float) -> float:
    """The last position where the prediction says something of x0: not pure noise with epsilon prediction."""
    last = torch.tensor([type(t)(process.last_position)])
    blind = bool((process.snr(last) == 0) & (process.eps_error_scale(last) > 0))
    return process.last_position - int(blind)


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
    if not _is_number(value) or not 0 <= value <= 1:  # also false for NaN
        faults.add(f"probability is {value!r}: it must be a number from 0 to 1")
    for name in ("anti_drift", "frequency_compensation"):
        value = getattr(options, name)
        if not _is_number(value) or not 0 <= value < math.inf:
            faults.add(f"{name} is {value!r}: it must be a finite number, at least 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
