"""Noise processes: how a clean latent becomes a noisy one, and what the denoiser predicts from it.

Symbols follow the papers: x0 clean latent, eps Gaussian noise, x_t = alpha_t x0 + sigma_t eps. Shapes: B batch,
C channels, h x w latent, T timesteps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from dreamlit.errors import ModelError, nearest

PredictionType = Literal["epsilon", "v_prediction"]


class Process(ABC):
    """What a family, the objective and the samplers need to know of the noise. Objects are values: nothing changes."""

    num_timesteps: int
    """T: `t` runs from 0 (almost clean) to T - 1, or T where it is continuous (almost pure noise)."""
    prediction_type: str
    """What the denoiser predicts, as diffusers names it."""

    def sized(self, shape: Sequence[int]) -> Process:
        """The process of latents of this shape [..., h, w], where its schedule depends on that."""
        return self

    @property
    def borders(self) -> tuple[float, float]:
        """The timesteps between which the model is made to work: the first one, and where they end."""
        return 0, self.num_timesteps

    @abstractmethod
    def timestep(self, u: float) -> int | float:
        """The timestep at the share `u` in [0, 1) of the schedule: uniform `u` is spread as a sampler's steps are."""

    def position(self, t: Tensor) -> Tensor:
        """Where the timesteps `t` [B] lie on the schedule, so that equal distances are equal steps of a sampler: [B].

        It runs from 0 to `last_position`; `t` itself unless the schedule is shifted.
        """
        return t

    def at_position(self, position: Tensor) -> Tensor:
        """The timesteps at positions [B] of the schedule: [B]. The inverse of `position`."""
        return position

    @property
    def last_position(self) -> float:
        """The position of the last timestep."""
        return self.num_timesteps - 1

    @abstractmethod
    def alpha_sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The factors of x0 and of eps in x_t at `t` [B]: two tensors [B, 1, 1, 1] on the device of `t`."""

    @abstractmethod
    def snr(self, t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2 at `t` [B]: [B]. It is 0 at the end of a zero-terminal schedule."""

    @abstractmethod
    def eps_error_scale(self, t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Squared error in eps per squared error in the prediction, at the same x_t: [B].

        It carries a weight derived for one prediction type over to another (1 for epsilon, alpha^2 for v).
        """

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should predict for x_t = noise(x0, eps, t): [B, C, h, w]."""

    @abstractmethod
    def x0_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean latent that `prediction` claims stands behind `x_t`: [B, C, h, w]."""

    @abstractmethod
    def target_at(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The prediction that leads `x_t` back to `x0`, also when `x_t` did not come from `noise`: [B, C, h, w]."""

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t eps, [B, C, h, w]; at least float32, whatever the inputs are."""
        alpha, sigma = self.alpha_sigma(t, working_dtype(x0))
        return alpha * x0 + sigma * eps


class Diffusion(Process):
    """The variance-preserving process of DDPM (Ho et al. 2020), predicting eps or v (Salimans and Ho 2022).

    Args:
        alphas_cumprod: alpha_t^2 for every timestep, [T], falling, in [0, 1); 0 is allowed at the end (zero-terminal).
            Kept in float64.
        prediction_type: `epsilon`, or `v_prediction` with v = alpha eps - sigma x0.
        span: First and last share of the timesteps that the denoiser is made for.

    Raises:
        ModelError: another prediction type, or a table that is not a falling schedule.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor | Sequence[float],
        prediction_type: str = "epsilon",
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.alphas_cumprod = checked_schedule(alphas_cumprod)
        self.prediction_type = checked_prediction_type(prediction_type)
        self.num_timesteps = len(self.alphas_cumprod)
        self.span = span
        self._tables: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def __reduce__(self) -> tuple[type[Diffusion], tuple[Tensor, str, tuple[float, float]]]:
        # loader workers must not receive device tables
        return Diffusion, (self.alphas_cumprod, self.prediction_type, self.span)

    def within(self, first: float, last: float) -> Diffusion:
        """The same process for a denoiser of these timesteps alone: from `first` to below `last`, shares in [0, 1].

        Errors: `ModelError` if there is no whole timestep between them.
        """
        if not 0 <= first < last <= 1 or round(first * self.num_timesteps) == round(last * self.num_timesteps):
            raise ModelError(f"there is no timestep between the shares {first} and {last} of the schedule")
        return Diffusion(self.alphas_cumprod, self.prediction_type, (first, last))

    @property
    def borders(self) -> tuple[int, int]:
        first, last = (round(share * self.num_timesteps) for share in self.span)
        return first, last

    @property
    def last_position(self) -> int:
        return self.borders[1] - 1

    def __repr__(self) -> str:
        end = " zero-terminal" if self.alphas_cumprod[-1] == 0 else ""
        return f"Diffusion({self.prediction_type}, {self.num_timesteps} timesteps{end})"

    def timestep(self, u: float) -> int:
        if not 0 <= u < 1:
            raise ValueError(f"u is {u}: it must be in [0, 1)")
        first, end = self.borders
        return min(first + int(u * (end - first)), end - 1)  # u just below 1 can round up to T

    def alpha_sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._look_up("alpha", t, dtype), self._look_up("sigma", t, dtype)
        return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)

    def snr(self, t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return self._look_up("snr", t, dtype)

    def eps_error_scale(self, t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        if self.prediction_type == "epsilon":
            return torch.ones(t.shape, dtype=dtype, device=t.device)
        return self._look_up("alpha_squared", t, dtype)  # eps = alpha v + sigma x_t

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return eps
        alpha, sigma = self.alpha_sigma(t, working_dtype(x0))
        return alpha * eps - sigma * x0

    def x0_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """As in the base class. An epsilon prediction says nothing of x0 where alpha is 0: there the answer is 0."""
        alpha, sigma = self.alpha_sigma(t, working_dtype(x_t))
        if self.prediction_type == "v_prediction":
            return alpha * x_t - sigma * prediction
        x0 = (x_t - sigma * prediction) / alpha.masked_fill(alpha == 0, 1)
        return x0.masked_fill(alpha == 0, 0)

    def target_at(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.alpha_sigma(t, working_dtype(x_t))
        if self.prediction_type == "epsilon":
            return (x_t - alpha * x0) / sigma
        return (alpha * x_t - x0) / sigma  # alpha eps - sigma x0 with eps = (x_t - alpha x0) / sigma

    def _look_up(self, name: str, t: Tensor, dtype: torch.dtype) -> Tensor:
        """The float64 table `name`, rounded once to `dtype` and kept on the device of `t`, at `t` [B]."""
        if t.ndim != 1 or t.is_floating_point():
            raise ValueError(f"t is {t.dtype} of shape {list(t.shape)}: it must be integers of shape [B]")
        key = name, t.device, dtype
        if key not in self._tables:
            self._tables[key] = self._table(name).to(dtype).to(t.device)
        return self._tables[key][t]

    def _table(self, name: str) -> Tensor:
        a = self.alphas_cumprod
        return {"alpha": a.sqrt(), "sigma": (1 - a).sqrt(), "snr": a / (1 - a), "alpha_squared": a}[name]


def rescale_zero_terminal_snr(alphas_cumprod: Tensor | Sequence[float]) -> Tensor:
    """The schedule shifted and scaled so that the last step is pure noise: Lin et al. 2023, algorithm 1.

    Takes and returns alpha_t^2, [T], float64; the first value is kept and the last becomes exactly 0.
    """
    alphas = checked_schedule(alphas_cumprod).sqrt()
    first, last = alphas[0], alphas[-1]
    return ((alphas - last) * (first / (first - last))).square()


def working_dtype(tensor: Tensor) -> torch.dtype:
    """The type that arithmetic on `tensor` is done in: float32, or float64 if it has that."""
    return torch.promote_types(tensor.dtype, torch.float32)


def checked_prediction_type(name: str) -> PredictionType:
    if name not in get_args(PredictionType):
        raise ModelError(f"The model's prediction_type is {name!r}; {nearest(name, get_args(PredictionType))}")
    return cast(PredictionType, name)


def checked_schedule(alphas_cumprod: Tensor | Sequence[float]) -> Tensor:
    """The schedule as a float64 tensor [T] on the CPU, or a ModelError that says what is wrong with it."""
    table = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
    if table.ndim != 1 or len(table) < 2:
        raise ModelError(f"alphas_cumprod has shape {list(table.shape)}: it must be a list of at least 2 values")
    if not bool(((table >= 0) & (table < 1)).all()):  # also false for NaN
        low, high = table.min().item(), table.max().item()
        raise ModelError(f"alphas_cumprod runs from {low} to {high}: every value must be in [0, 1)")
    if not bool((table.diff() < 0).all()):
        raise ModelError(f"alphas_cumprod does not fall at t = {int((table.diff() >= 0).nonzero()[0]) + 1}: it must")
    return table
