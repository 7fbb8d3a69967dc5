"""ReflexFlow's two terms for samples that the model has led off their path (Huang et al. 2025, arXiv 2512.04904).

Flow matching only. Anti-drift rectification turns the prediction at a drifted state toward the photo; frequency
compensation gives more weight to what the model no longer predicts there. Symbols as in `process`; here x_t is the
drifted state, at sigma_t, and v the prediction, whose target at x_t is (x_t - x0) / sigma_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamlit.rollout import Predict
from dreamlit.rollout_options import RolloutOptions
from dreamlit.types import Batch, DriftTerms


@torch.no_grad()
def drift_terms(
    predict: Predict, on_path: Tensor, drifted: Tensor, batch: Batch, chosen: Tensor, options: RolloutOptions
) -> DriftTerms | None:
    """What `Objective.losses` needs for the terms that `options` turn on; None where none has anything to do.

    Frequency compensation costs one more forward, with two rows for each chosen sample.

    Args:
        predict: the denoiser without dropout; see `rollout.Predict`.
        on_path: x_t as noise makes it, [B, C, h, w].
        drifted: x_t as the model reached it, [B, C, h, w].
        batch: gives x0, t and the mask.
        chosen: the samples that get the terms, bool [B]: rolled out, and learning their own photo.
    """
    rows = chosen.nonzero().flatten()
    if len(rows) == 0 or not options.reflex:
        return None
    emphasis = None
    if options.frequency_compensation:
        places = torch.cat([on_path[rows], drifted[rows]])
        both = predict(places, batch.t[rows].repeat(2), rows.repeat(2)).to(drifted.dtype)
        both = both * batch.mask[rows].repeat(2, 1, 1, 1).to(both.dtype)
        emphasis = torch.ones_like(drifted)
        of_path, of_drifted = both.chunk(2)
        emphasis[rows] = compensation(of_path, of_drifted, options.frequency_compensation)
    return DriftTerms(drifted - batch.latents, options.anti_drift * chosen.to(drifted.dtype), emphasis)


def compensation(on_path: Tensor, drifted: Tensor, alpha: float) -> Tensor:
    """Weight of each cell's loss, 1 + alpha b / |b|_1 with the exposure bias b = v(on the path) - v(drifted).

    All are [n, C, h, w]; masked cells are 0 in both. |b|_1 sums over a whole sample: at the paper's alpha of 1 a weight
    differs from 1 by about 1 / (C h w). Never below 0.
    """
    bias = on_path - drifted
    size = bias.abs().sum(dim=(1, 2, 3), keepdim=True)
    return (1 + alpha * bias / size.clamp(min=torch.finfo(bias.dtype).tiny)).clamp(min=0)
