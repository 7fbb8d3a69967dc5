"""How much an error counts: by its size (loss kinds) and by the noise level (timestep weights).

Only tensor methods are used, so that importing this costs nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from dreamlit.process import Process

DEBIASED_MIN_SNR = 1e-3
"""1 / sqrt(SNR) has no bound at SNR 0. Stable Diffusion's own schedule ends at 0.0047, so this floor only acts on
zero-terminal schedules, where it limits the weight to 31.6."""


def min_snr_weight(snr: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR for eps losses, with its limit 1 at SNR 0 (Hang et al. 2023)."""
    return gamma / snr.clamp(min=gamma)


def debiased_weight(snr: Tensor) -> Tensor:
    """1 / sqrt(SNR) for eps losses, SNR no lower than `DEBIASED_MIN_SNR` (Yu et al. 2023)."""
    return snr.clamp(min=DEBIASED_MIN_SNR).rsqrt()


def timestep_weight(process: Process, t: Tensor, dtype: dtype, weighting: str, snr_gamma: float) -> Tensor:
    """Weight of the loss at `t` [B], [B], for what `process` predicts.

    Papers give weights for eps losses. At the same x_t an error in the prediction is an error in eps that is
    `process.eps_error_scale` times its square, so the same x0-space loss is had by multiplying with that scale:
    for v it is alpha^2 = SNR / (SNR + 1), hence min(SNR, gamma) / (SNR + 1) and sqrt(SNR) / (SNR + 1). Both are 0 at
    SNR 0, where x_t says nothing about the photo.
    """
    snr = process.snr(t, dtype)
    if weighting == "none":
        return snr.new_ones(snr.shape)
    weight = min_snr_weight(snr, snr_gamma) if weighting == "min_snr" else debiased_weight(snr)
    return weight * process.eps_error_scale(t, dtype)


def directional_error(prediction: Tensor, away: Tensor) -> Tensor:
    """|v / |v| - a / |a||^2 over each sample, from 0 (the same direction) to 4: [B, C, h, w] twice -> [B].

    ReflexFlow's anti-drift rectification (Huang et al. 2025). A vector of zeros has no direction, and counts as 0.
    """

    def unit(vector: Tensor) -> Tensor:
        flat = vector.flatten(1)
        return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)

    return (unit(prediction) - unit(away)).square().sum(dim=1)


def huber_width(process: Process, t: Tensor, dtype: dtype, schedule: str, huber_c: float) -> Tensor:
    """The error size c at which the Huber kinds turn from square to linear at `t` [B]: [B].

    `snr`: (1 - huber_c) / (1 + sigma / alpha)^2 + huber_c; `exponential`: huber_c^(t / T); both run from about 1 on
    clean inputs to huber_c on noise. `constant`: huber_c (Khrapov et al. 2024).
    """
    root_snr = process.snr(t, dtype).sqrt()
    if schedule == "snr":
        share = root_snr / (1 + root_snr)  # 1 / (1 + sigma / alpha), but finite at alpha 0
        return (1 - huber_c) * share.square() + huber_c
    if schedule == "exponential":
        return (t.to(dtype) * (math.log(huber_c) / process.num_timesteps)).exp()
    return root_snr.new_full(root_snr.shape, huber_c)


def l2(error: Tensor) -> Tensor:
    """error^2, elementwise."""
    return error.square()


def huber(error: Tensor, c: Tensor) -> Tensor:
    """Pseudo-Huber 2 c (sqrt(error^2 + c^2) - c), elementwise: error^2 for small errors."""
    return c * smooth_l1(error, c)


def smooth_l1(error: Tensor, c: Tensor) -> Tensor:
    """2 (sqrt(error^2 + c^2) - c), elementwise: 2 |error| for large errors."""
    square = error.square()
    return 2 * square / ((square + c.square()).sqrt() + c)  # the same number without cancellation for small errors
