"""Flow matching: a straight path from the clean latent to noise, whose velocity the denoiser predicts.

x_t = (1 - sigma) x0 + sigma eps with sigma = t / T; the target is the velocity eps - x0 (Lipman et al. 2023, arXiv
2210.02747; Liu et al. 2023, arXiv 2209.03003). Large images hide less at the same sigma, so their schedule is shifted
toward the noise: sigma' = s sigma / (1 + (s - 1) sigma) (Esser et al. 2024, arXiv 2403.03206, equation 23).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dreamlit.errors import ModelError
from dreamlit.process import Process, working_dtype


@dataclasses.dataclass(frozen=True)
class ResolutionShift:
    """A shift that grows with the image: exp(mu) or mu, with mu linear in the number of the denoiser's tokens.

    Fields as `FlowMatchEulerDiscreteScheduler` of diffusers calls them, for models with `use_dynamic_shifting`.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: str = "exponential"

    def at(self, tokens: int) -> float:
        """The shift s of an image of so many tokens; beyond the two given lengths the line goes on."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        mu = self.base_shift + slope * (tokens - self.base_image_seq_len)
        return math.exp(mu) if self.time_shift_type == "exponential" else mu


@dataclasses.dataclass(frozen=True)
class EmpiricalShift(ResolutionShift):
    """Flux.2's shift exp(mu): a line in the number of tokens, fitted for 10 and for 200 sampler steps.

    As `compute_empirical_mu` of diffusers' pipeline; between the two the mu of `steps` lies on a line, and beyond 4300
    tokens it is that of 200 steps.
    """

    steps: int = 50

    def at(self, tokens: int) -> float:
        most = 0.00016927 * tokens + 0.45666666
        least = 8.73809524e-05 * tokens + 1.89833333
        slope = 0 if tokens > 4300 else (most - least) / 190
        return math.exp(most + slope * (self.steps - 200))


class FlowMatching(Process):
    """Rectified flow; `t` is any number in [0, T].

    Args:
        shift: s of the schedule, above 0: a number, or one that depends on the size of the image.
        num_timesteps: T, which is where `t` is pure noise.
        patch: Latent cells along a side of one token of the denoiser.
        size: Height and width of the latents in cells, for a shift that depends on them; see `sized`.

    Raises:
        ModelError: a shift that is not above 0.
    """

    prediction_type = "flow_prediction"

    def __init__(
        self,
        shift: float | ResolutionShift = 1.0,
        num_timesteps: int = 1000,
        patch: int = 2,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.num_timesteps, self.patch, self.size = num_timesteps, patch, size
        self.given_shift = shift
        if not isinstance(shift, ResolutionShift):
            checked_shift(shift)
        elif size is not None:
            checked_shift(self.shift)

    def __repr__(self) -> str:
        return f"FlowMatching(shift {self.given_shift}, {self.num_timesteps} timesteps)"

    def sized(self, shape: Sequence[int]) -> FlowMatching:
        if not isinstance(self.given_shift, ResolutionShift):
            return self
        return FlowMatching(self.given_shift, self.num_timesteps, self.patch, (shape[-2], shape[-1]))

    @property
    def shift(self) -> float:
        """s for this size. Errors: `ValueError` where it depends on a size that is not known; see `sized`."""
        if not isinstance(self.given_shift, ResolutionShift):
            return self.given_shift
        if self.size is None:
            raise ValueError("the shift depends on the size of the latents: ask sized(shape)")
        height, width = self.size
        return self.given_shift.at((height // self.patch) * (width // self.patch))

    # positions on the schedule --------------------------------------------------------------------------------------

    def timestep(self, u: float) -> float:
        if not 0 <= u < 1:
            raise ValueError(f"u is {u}: it must be in [0, 1)")
        return self.num_timesteps * shifted(u, self.shift)

    def position(self, t: Tensor) -> Tensor:
        # a shift by 1 / s undoes one by s
        return self.num_timesteps * shifted(t.to(working_dtype(t)) / self.num_timesteps, 1 / self.shift)

    def at_position(self, position: Tensor) -> Tensor:
        share = (position / self.num_timesteps).clamp(0, 1)  # rounding may lead out by a little
        return self.num_timesteps * shifted(share, self.shift)

    @property
    def last_position(self) -> float:
        return self.num_timesteps

    # the path -------------------------------------------------------------------------------------------------------

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        sigma = self._sigma(t, dtype).view(-1, 1, 1, 1)
        return 1 - sigma, sigma

    def snr(self, t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        sigma = self._sigma(t, dtype)
        return ((1 - sigma) / sigma).square()

    def eps_error_scale(self, t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return (1 - self._sigma(t, dtype)).square()  # eps = x_t + (1 - sigma) v

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps - x0

    def x0_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        _, sigma = self.alpha_sigma(t, working_dtype(x_t))
        return x_t - sigma * prediction

    def target_at(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """As in the base class. At sigma 0 every prediction leads nowhere else: there the answer is 0."""
        _, sigma = self.alpha_sigma(t, working_dtype(x_t))
        return ((x_t - x0) / sigma.masked_fill(sigma == 0, 1)).masked_fill(sigma == 0, 0)

    def _sigma(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        if t.ndim != 1:
            raise ValueError(f"t has shape {list(t.shape)}: it must be [B]")
        return t.to(torch.promote_types(dtype, torch.float32)) / self.num_timesteps


def shifted(sigma: Any, shift: float) -> Any:
    """sigma' = s sigma / (1 + (s - 1) sigma), of a number or a tensor in [0, 1]."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def checked_shift(shift: float) -> float:
    if not (isinstance(shift, (int, float)) and math.isfinite(shift) and shift > 0):
        raise ModelError(f"shift is {shift!r}: it must be a finite number above 0 (1 shifts nothing)")
    return float(shift)


def from_scheduler(config: Mapping[str, Any], shift: float | None = None, patch: int = 2) -> FlowMatching:
    """The process that a scheduler's configuration describes.

    Args:
        config: of a `FlowMatchEulerDiscreteScheduler`, or of another one with `use_flow_sigmas`.
        shift: Replaces what the configuration says of shifts.
        patch: See `FlowMatching`.

    Raises:
        ModelError: what the configuration asks for is unknown, or not flow matching.
    """
    of_flow = config.get("use_flow_sigmas", False) and config.get("prediction_type") == "flow_prediction"
    if ("beta_start" in config and not of_flow) or "num_train_timesteps" not in config:
        raise ModelError(f"the model's scheduler is {config.get('_class_name')}, which is not of the flow kind")
    timesteps = int(config["num_train_timesteps"])
    if shift is not None:
        return FlowMatching(checked_shift(shift), timesteps, patch)
    if not config.get("use_dynamic_shifting", False):
        own = config.get("flow_shift" if of_flow else "shift", 1.0)
        return FlowMatching(checked_shift(own), timesteps, patch)
    names = [field.name for field in dataclasses.fields(ResolutionShift)]
    dynamic = ResolutionShift(**{name: config[name] for name in names if config.get(name) is not None})
    if dynamic.time_shift_type not in ("exponential", "linear"):
        raise ModelError(f"time_shift_type is {dynamic.time_shift_type!r}; allowed: exponential, linear")
    if dynamic.max_image_seq_len <= dynamic.base_image_seq_len:
        raise ModelError("max_image_seq_len must be above base_image_seq_len in the model's scheduler")
    return FlowMatching(dynamic, timesteps, patch)
