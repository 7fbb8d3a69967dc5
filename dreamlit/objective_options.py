"""The choices that an `Objective` offers, and the checks of its values; all faults come in one report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeGuard, get_args

from dreamlit.densities import LARGEST_BETA, MODE_SCALE, PARAMETERS
from dreamlit.errors import Faults, nearest

if TYPE_CHECKING:
    from dreamlit.objective import Objective

LossKind = Literal["l2", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "snr", "exponential"]
Weighting = Literal["none", "min_snr", "debiased"]
Timesteps = Literal["low_discrepancy", "random"]
TimestepBias = Literal["none", "earlier", "later"]
TimestepDensity = Literal["uniform", "logit_normal", "mode", "beta"]
PriorTarget = Literal["base_model", "data"]
MaskNormalisation = Literal["area", "frame"]
UnmaskedTarget = Literal["ignore", "base_model"]


def check_options(objective: Objective) -> None:
    """Raises a ConfigError that names every wrong value and every option that has no effect with the others."""
    faults = Faults("The objective cannot be used")
    _check_choices(objective, faults)
    _check_numbers(objective, faults)
    _check_range(objective.timestep_range, faults)
    _check_effects(objective, faults)
    faults.raise_if_any()


def _may_be_none(objective: Objective, name: str) -> bool:
    return getattr(type(objective), name) is None


def _check_choices(objective: Objective, faults: Faults) -> None:
    choices = {"loss": LossKind, "huber_schedule": HuberSchedule, "weighting": Weighting, "timesteps": Timesteps}
    choices |= {"timestep_bias": TimestepBias, "prior_target": PriorTarget, "mask_normalisation": MaskNormalisation}
    choices |= {"unmasked_target": UnmaskedTarget, "timestep_density": TimestepDensity}
    for name, literal in choices.items():
        value = getattr(objective, name)
        if value not in get_args(literal) and not (value is None and _may_be_none(objective, name)):
            faults.add(f"{name} is {value!r}; {nearest(str(value), get_args(literal))}")


def _check_numbers(objective: Objective, faults: Faults) -> None:
    rules = {
        "huber_c": (lambda x: x > 0, "above 0"),
        "snr_gamma": (lambda x: x > 0, "above 0"),
        "offset_noise": (lambda x: x >= 0, "at least 0"),
        "input_perturbation": (lambda x: x >= 0, "at least 0"),
        "timestep_bias_strength": (lambda x: x > 1, "above 1; to favour the other end, change timestep_bias"),
        "logit_mean": (lambda x: abs(x) <= 10, "from -10 to 10"),
        "logit_std": (lambda x: 0 < x <= 10, "above 0, at most 10"),
        "mode_scale": (
            lambda x: MODE_SCALE[0] <= x <= MODE_SCALE[1],
            f"from {MODE_SCALE[0]:g} to {MODE_SCALE[1]:.4f}",
        ),
        "beta_alpha": (lambda x: 0 < x <= LARGEST_BETA, f"above 0, at most {LARGEST_BETA:g}"),
        "beta_beta": (lambda x: 0 < x <= LARGEST_BETA, f"above 0, at most {LARGEST_BETA:g}"),
        "prior_loss_weight": (lambda x: x >= 0, "at least 0"),
        "unmasked_weight": (
            lambda x: 0 <= x < 1,
            "at least 0 and below 1; to train on whole pictures, remove the masks",
        ),
    }
    for name, (holds, rule) in rules.items():
        value = getattr(objective, name)
        if value is None and _may_be_none(objective, name):
            continue
        if not _is_number(value) or not holds(value):
            faults.add(f"{name} is {value!r}: it must be a number {rule}")
    if objective.huber_schedule != "constant" and _is_number(objective.huber_c) and objective.huber_c > 1:
        faults.add(
            f"huber_c is {objective.huber_c}: with a schedule it must be at most 1, or set huber_schedule: constant"
        )


def _check_range(timestep_range: object, faults: Faults) -> None:
    pair = timestep_range if isinstance(timestep_range, (tuple, list)) else ()
    if len(pair) != 2 or not all(map(_is_number, pair)) or not 0 <= pair[0] < pair[1] <= 1:
        faults.add(
            f"timestep_range is {timestep_range!r}: it must be two fractions of the schedule, 0 <= first < last <= 1 "
            "(for step numbers divide by the number of steps, for example 200 of 1000 is 0.2)"
        )


def _check_effects(objective: Objective, faults: Faults) -> None:
    """Options that are set but do nothing."""
    if objective.loss == "l2":
        for name in ("huber_c", "huber_schedule"):
            if getattr(objective, name) is not None:
                faults.add(f"{name} has no effect with loss: l2; remove it, or set loss: huber or smooth_l1")
    if objective.weighting != "min_snr" and objective.snr_gamma is not None:
        faults.add(
            f"snr_gamma has no effect with weighting: {objective.weighting}; remove it, or set weighting: min_snr"
        )
    if objective.timestep_bias == "none" and objective.timestep_bias_strength is not None:
        faults.add("timestep_bias_strength has no effect with timestep_bias: none; set earlier or later, or remove it")
    for density, options in PARAMETERS.items():
        for name in options if objective.timestep_density != density else ():
            if getattr(objective, name) is not None:
                faults.add(f"{name} has no effect with timestep_density: {objective.timestep_density}; remove it")
    if objective.timestep_bias != "none" and objective.timestep_density != "uniform":
        faults.add("timestep_bias and timestep_density both say how often timesteps are drawn; remove one of them")
    if objective.prior_loss_weight == 0 and objective.prior_target == "data":
        faults.add("prior_target has no effect with prior_loss_weight: 0; remove one of them")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
