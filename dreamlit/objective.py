"""What is learned from a sample: the noise and timestep of a draw, and the loss of a prediction.

Shapes: B batch, C channels, h x w latent. `docs/objective.md` has the formulas. Importing this costs no torch.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from dreamlit import densities, weighting
from dreamlit.objective_options import (
    HuberSchedule,
    LossKind,
    MaskNormalisation,
    PriorTarget,
    TimestepBias,
    TimestepDensity,
    Timesteps,
    UnmaskedTarget,
    Weighting,
    check_options,
)
from dreamlit.seeds import Part, generator
from dreamlit.types import Role

if TYPE_CHECKING:
    from torch import Tensor

    from dreamlit.process import Process
    from dreamlit.types import Batch, DriftTerms

HUBER_C = 0.1
SNR_GAMMA = 5.0
BIAS_STRENGTH = 4.0


class Draw(NamedTuple):
    """The noise of one draw: `Batch.t`, `Batch.eps` and `Batch.input_eps` before they are stacked."""

    t: int | float
    eps: Tensor
    """What the target is made from: [C, h, w], float32, CPU."""
    input_eps: Tensor
    """What x_t is made from: [C, h, w]. The same tensor as `eps` without input perturbation."""


class Losses(NamedTuple):
    """The loss of a batch."""

    total: Tensor
    """Scalar to go backward from: the weighted sum over samples divided by B."""
    per_sample: Tensor
    """Loss of each sample as in `total` but before `Batch.weight` and `prior_loss_weight`: [B], detached."""
    role: Tensor
    """`Role` of each sample: [B]."""

    of_class: Tensor | None = None
    """The same of the samples with a class prompt, under that prompt: [K], detached; None without any."""

    def sums(self) -> Tensor:
        """[3, 2]: of each `Role` and of the class prompts the losses' sum and number. They add up over ranks, steps."""
        import torch

        member = torch.stack([self.role == role for role in Role])  # [roles, B]
        losses = self.per_sample.masked_fill(~member, 0)  # masked, not multiplied: one role's NaN stays its own
        roles = torch.stack([losses.sum(dim=1), member.to(losses.dtype).sum(dim=1)], dim=1)
        held = self.per_sample.new_zeros(0) if self.of_class is None else self.of_class
        return torch.cat([roles, torch.stack([held.sum(), held.new_tensor(float(len(held)))])[None]])


@dataclasses.dataclass(frozen=True)
class Objective:
    """Noise, timesteps, weights, prior preservation and masks: everything between a latent and its loss.

    Args:
        loss: Kind of the elementwise loss: `l2`, the squared error; `huber`, 2c(sqrt(e^2+c^2)-c), which grows only
            linearly for errors e beyond c; `smooth_l1`, the same divided by c.
        huber_c: The error size c at which huber and smooth_l1 turn linear, above 0 (default 0.1). With a schedule it
            is the value at the noisy end, at most 1.
        huber_schedule: How c runs over the timesteps: `snr` (default; from about 1 on clean inputs to huber_c on
            noise, by the signal-to-noise ratio), `exponential` (the same by the timestep) or `constant`.
        weighting: Weight of the loss by noise level: `none`; `min_snr`, min(SNR, gamma)/SNR (Hang et al. 2023);
            `debiased`, 1/sqrt(SNR) (Yu et al. 2023). Both are converted for v prediction, where they do not train a
            step of pure noise: for the zero-terminal step to be learned, use `none`.
        snr_gamma: The gamma of min_snr, above 0 (default 5).
        offset_noise: Strength of noise that is constant over each channel, added to the noise; lets a model learn
            very dark and very bright pictures. 0 is off; 0.05 to 0.1 is usual.
        input_perturbation: Strength of further noise that only the input gets, not the target (Ning et al. 2023).
            0 is off; the paper uses 0.1.
        timesteps: `low_discrepancy`: the visits of each image are spread evenly over the noise levels, so that a few
            visits already meet all of them; `random`: independent draws.
        timestep_range: First and last share of the noise schedule to train on, as fractions: [0, 1] is all of it, 0
            the clean end; [0, 0.2] of 1000 steps are steps 0 to 199.
        timestep_bias: Draw `earlier` (little noise: texture, fine detail) or `later` (much noise: shape, composition)
            timesteps more often, or `none`.
        timestep_bias_strength: How many times as often the favoured end of the range is drawn as the other end, above
            1 (default 4). In between, the density is log-linear.
        timestep_density: How often timesteps are drawn, from the clean to the noisy end of the range: `uniform`;
            `logit_normal`, the sigmoid of a normal number (SD3's training; some call it sigmoid, and logit_std its
            scale); `mode`, SD3's density with heavy tails; `beta`. The shift of a flow model comes on top.
        logit_mean: Mean of that normal number: below 0 favours the clean end (default 0).
        logit_std: The standard deviation of that normal number (default 1).
        mode_scale: How much the middle is favoured, from -1 to 1.75 (default 1.29); 0 is uniform.
        beta_alpha: First parameter of the beta density (default 2): larger favours the noisy end.
        beta_beta: Second parameter (default 2): larger favours the clean end.
        prior_loss_weight: Weight of the loss of regularisation samples and of class prompts, at least 0.
        prior_target: What regularisation samples are trained toward: `base_model`, the prediction of the model
            without the adapter at the same noisy latent, timestep and text; `data`, their own photo (the plain
            variant of DreamBooth, Ruiz et al. 2023).
        mask_normalisation: Divide a sample's masked loss by the mask's sum (`area`: a small subject counts as much as
            a large one) or by all cells (`frame`).
        unmasked_weight: Share of the loss that masked-out parts keep, from 0 to below 1.
        unmasked_target: What masked-out parts are trained toward otherwise: nothing (`ignore`), or the prediction of
            the model without the adapter (`base_model`).

    Raises:
        ConfigError: naming every value that is wrong and every option that has no effect with the others.
    """

    loss: LossKind = "l2"
    huber_c: float | None = None
    huber_schedule: HuberSchedule | None = None
    weighting: Weighting = "none"
    snr_gamma: float | None = None
    offset_noise: float = 0.0
    input_perturbation: float = 0.0
    timesteps: Timesteps = "low_discrepancy"
    timestep_range: tuple[float, float] = (0.0, 1.0)
    timestep_bias: TimestepBias = "none"
    timestep_bias_strength: float | None = None
    timestep_density: TimestepDensity = "uniform"
    logit_mean: float | None = None
    logit_std: float | None = None
    mode_scale: float | None = None
    beta_alpha: float | None = None
    beta_beta: float | None = None
    prior_loss_weight: float = 1.0
    prior_target: PriorTarget = "base_model"
    mask_normalisation: MaskNormalisation = "area"
    unmasked_weight: float = 0.0
    unmasked_target: UnmaskedTarget = "ignore"

    def __post_init__(self) -> None:
        check_options(self)

    def draw(self, process: Process, seed: int, sample_id: Part, visit: int, shape: tuple[int, ...]) -> Draw:
        """Timestep and noise of the visit number `visit` to a sample. Pure; runs on the CPU, in the loader.

        Args:
            shape: of the latent, [C, h, w].
        """
        import torch

        def normal(purpose: str, size: tuple[int, ...]) -> Tensor:
            return torch.randn(size, generator=generator(seed, purpose, sample_id, visit))

        t = process.sized(shape).timestep(self.level(seed, sample_id, visit))
        eps = normal("noise", shape)
        if self.offset_noise:
            eps = eps + self.offset_noise * normal("offset_noise", (shape[0], 1, 1))
        if not self.input_perturbation:
            return Draw(t, eps, eps)
        return Draw(t, eps, eps + self.input_perturbation * normal("input_perturbation", shape))

    def level(self, seed: int, sample_id: Part, visit: int) -> float:
        """Where on the noise schedule a visit falls: a share in [0, 1) of the process, within `timestep_range`."""
        source = densities.low_discrepancy if self.timesteps == "low_discrepancy" else densities.random
        u = source(seed, sample_id, visit)
        if options := densities.PARAMETERS.get(self.timestep_density):
            given = {name: getattr(self, name) for name in options}
            parameters = tuple(usual if given[name] is None else given[name] for name, usual in options.items())
            share = densities.inverse_cdf(self.timestep_density, parameters, u)
            return densities.into_range(share, *self.timestep_range)
        strength = BIAS_STRENGTH if self.timestep_bias_strength is None else self.timestep_bias_strength
        ratio = {"none": 1.0, "earlier": 1 / strength, "later": strength}[self.timestep_bias]
        return densities.into_range(densities.log_linear(u, ratio), *self.timestep_range)

    def needs_base(self, batch: Batch) -> Tensor:
        """Which samples need the base model's prediction: bool [B]."""
        need = self._taught_by_base(batch)
        if self.unmasked_target == "base_model":
            need = need | (batch.mask != 1).flatten(1).any(dim=1) & self._counts(batch)
        return need

    def losses(
        self,
        process: Process,
        prediction: Tensor,
        target: Tensor,
        batch: Batch,
        base_prediction: Tensor | None = None,
        of_class: tuple[Tensor, Tensor] | None = None,
        prior_loss_weight: float | None = None,
        drift: DriftTerms | None = None,
    ) -> Losses:
        """The loss of `prediction` [B, C, h, w]; only `prediction` receives a gradient.

        Args:
            process: the process that `batch.t` belongs to.
            prediction: of the model being trained, at x_t.
            target: of the process, for each sample's own photo.
            batch: gives t, mask, role and weight.
            base_prediction: of the model without the adapter, at the same x_t, t and conditioning; rows that
                `needs_base` does not name may hold anything finite. May be None if it names none.
            of_class: for the samples `batch.class_rows`, under their class prompts, the predictions of the model being
                trained and of the one without the adapter: both [K, C, h, w].
            prior_loss_weight: in place of the objective's own.
            drift: what ReflexFlow adds where samples have drifted; its directional error is of unmasked cells.

        Raises:
            ValueError: tensors of unequal shapes, or no base prediction where one is needed.
        """
        self._check_shapes(prediction, target, batch, base_prediction)
        own = target
        if base_prediction is not None:
            own = target.where(~self._taught_by_base(batch).view(-1, 1, 1, 1), base_prediction.to(target.dtype))
        mask = batch.mask[:, 0].to(_working(prediction).dtype)  # [B, h, w]
        inside = self.unmasked_weight + (1 - self.unmasked_weight) * mask
        emphasis = None if drift is None else drift.emphasis
        per_sample = self._average(self._elementwise(process, prediction, own, batch.t, emphasis), inside)
        if drift is not None:
            cells = inside[:, None]
            turned = weighting.directional_error(_working(prediction) * cells, drift.away.to(cells.dtype) * cells)
            per_sample = per_sample + drift.anti_drift.to(cells.dtype) * turned
        if self.unmasked_target == "base_model" and base_prediction is not None:
            toward_base = self._elementwise(process, prediction, base_prediction, batch.t)
            per_sample = per_sample + self._counts(batch) * ((1 - inside) * toward_base).mean(dim=(1, 2))
        prior = self.prior_loss_weight if prior_loss_weight is None else prior_loss_weight
        role_weight = (batch.role == Role.REGULARISATION).to(mask.dtype) * (prior - 1) + 1
        total = (batch.weight.to(mask.dtype) * role_weight * per_sample).mean()
        if of_class is None or batch.class_rows is None:
            return Losses(total, per_sample.detach(), batch.role)
        rows = batch.class_rows
        held = self._elementwise(process, *of_class, batch.t[rows]).mean(dim=(1, 2))
        total = total + prior * (batch.weight[rows].to(mask.dtype) * held).sum() / len(batch.weight)
        return Losses(total, per_sample.detach(), batch.role, held.detach())

    def _elementwise(
        self, process: Process, prediction: Tensor, target: Tensor, t: Tensor, emphasis: Tensor | None = None
    ) -> Tensor:
        """Each latent cell's loss by its timestep's weight and its own [B, C, h, w]: [B, h, w], at least float32."""
        prediction = _working(prediction)
        error, dtype = prediction - target.detach().to(prediction.dtype), prediction.dtype
        if self.loss == "l2":
            losses = weighting.l2(error)
        else:
            c0 = HUBER_C if self.huber_c is None else self.huber_c
            c = weighting.huber_width(process, t, dtype, self.huber_schedule or "snr", c0).view(-1, 1, 1, 1)
            losses = weighting.huber(error, c) if self.loss == "huber" else weighting.smooth_l1(error, c)
        if emphasis is not None:
            losses = losses * emphasis.to(dtype)
        gamma = SNR_GAMMA if self.snr_gamma is None else self.snr_gamma
        weight = weighting.timestep_weight(process, t, dtype, self.weighting, gamma)
        return weight.view(-1, 1, 1) * losses.mean(dim=1)

    def _average(self, losses: Tensor, mask: Tensor) -> Tensor:
        """Masked mean over the cells, [B, h, w] x [B, h, w] -> [B]; 0 where the mask is black all over."""
        masked = mask * losses
        if self.mask_normalisation == "frame":
            return masked.mean(dim=(1, 2))
        return masked.sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1e-30)

    def _counts(self, batch: Batch) -> Tensor:
        """Samples whose loss is not multiplied by a `prior_loss_weight` of 0: bool [B]."""
        return (batch.role != Role.REGULARISATION) | (self.prior_loss_weight != 0)

    def learns_photo(self, batch: Batch) -> Tensor:
        """Samples whose target is that of their own photo: bool [B]."""
        return self._counts(batch) & ~self._taught_by_base(batch)

    def _taught_by_base(self, batch: Batch) -> Tensor:
        """Samples whose target is the base model's prediction: bool [B]."""
        return (batch.role == Role.REGULARISATION) & (self.prior_target == "base_model") & self._counts(batch)

    def _check_shapes(self, prediction: Tensor, target: Tensor, batch: Batch, base: Tensor | None) -> None:
        count, _, height, width = shape = prediction.shape
        expected = {
            "target": (target, shape),
            "mask": (batch.mask, (count, 1, height, width)),
            "t": (batch.t, (count,)),
        }
        expected |= {"role": (batch.role, (count,)), "weight": (batch.weight, (count,))}
        if base is not None:
            expected["base_prediction"] = (base, shape)
        for name, (tensor, allowed) in expected.items():
            if tuple(tensor.shape) != tuple(allowed):  # broadcasting would hide it
                raise ValueError(f"{name} is {list(tensor.shape)} for a prediction of {list(shape)}: {list(allowed)}")
        if base is None and bool(self.needs_base(batch).any()):
            raise ValueError("base_prediction is None, but needs_base(batch) names samples that need it")


def _working(tensor: Tensor) -> Tensor:
    """Losses are computed in float32 under any mixed precision; float64 stays."""
    from dreamlit.process import working_dtype  # imports torch

    return tensor.to(working_dtype(tensor))
