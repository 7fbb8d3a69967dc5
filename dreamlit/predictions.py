"""What a module asks its denoiser beside the forward that it trains: the base model, and the model as it samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from dreamlit.types import Batch

if TYPE_CHECKING:
    from dreamlit.adapters import Adapter
    from dreamlit.families import Family
    from dreamlit.rollout import Predict
    from dreamlit.types import Conditioning


class Predictions(pl.LightningModule):
    """Forwards of the base model, and of the trained one as a sampler calls it, for samples of a batch."""

    family: Family
    adapter: Adapter
    denoiser: torch.nn.Module | None

    def as_it_samples(self, batch: Batch) -> Predict:
        """The denoiser for rows of the batch, without dropout: it takes nothing from the training's random numbers."""

        def predict(x_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            _, _, conditioning, frame = rows_of(batch, batch.latents, rows)
            training = [part for part in self.modules() if part.training]
            for part in training:
                part.training = False
            try:
                return self.family.predict(x_t, t, conditioning, frame, denoiser=self.denoiser)
            finally:
                for part in training:
                    part.training = True

        return predict

    @torch.no_grad()
    def base_prediction(self, x_t: Tensor, batch: Batch, needed: Tensor) -> Tensor | None:
        """What the base model predicts for the samples where `needed` ([B], bool) holds; zeros elsewhere.

        The base sees the same noisy latent, timestep and conditioning as the model in training.
        """
        rows = needed.nonzero().flatten()
        if len(rows) == 0:
            return None
        result = torch.zeros_like(x_t)
        result[rows] = self.by_base(*rows_of(batch, x_t, rows)).to(result.dtype)
        return result

    @torch.no_grad()
    def by_base(self, *asked: Any) -> Tensor:
        """What the base model predicts for the arguments of `Family.predict`."""
        with self.adapter.disabled() as base:
            return self.family.predict(*asked, denoiser=base)


def rows_of(batch: Batch, x_t: Tensor, rows: Tensor, texts: Conditioning | None = None) -> tuple[Any, ...]:
    """What `Family.predict` is asked for some samples of a batch, [K] of them, under `texts` where they are given."""
    conditioning = {**{name: value[rows] for name, value in batch.conditioning.items()}, **(texts or {})}
    return x_t[rows], batch.t[rows], conditioning, batch.frame[rows]
