"""A diffusers pipeline of a family's parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamlit.families import vae

if TYPE_CHECKING:
    from torch import nn

    from dreamlit.families.base import Family


def pipeline(family: Family, denoiser: nn.Module | None) -> Any:
    """See `Family.pipeline`."""
    import diffusers

    device = "cpu" if denoiser is None else next(denoiser.parameters()).device
    family.load("vae", "text_encoders", *(() if denoiser is not None else ("denoiser",)), device=device)
    parts: dict[str, Any] = {name: None for pair in family.text_encoder_names for name in pair}
    parts |= {name: family.part(name) for pair in family.text_parts() for name in pair}
    parts |= {name: vae.working_in_float32(family.part(name)) for name in family.components("vae")}
    parts |= {family.denoiser_name: family.denoiser if denoiser is None else denoiser, "scheduler": family.scheduler()}
    made = getattr(diffusers, family.pipeline_class)(**parts, **family.pipeline_options())
    made.set_progress_bar_config(disable=True)
    return made
