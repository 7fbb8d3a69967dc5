"""A diffusers pipeline of a family's parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamlit.families import recall, vae

if TYPE_CHECKING:
    from torch import nn

    from dreamlit.families.base import Family


def pipeline(family: Family, denoiser: nn.Module | None) -> Any:
    """See `Family.pipeline`."""
    if denoiser is None:
        family.load("vae", "text_encoders", "denoiser", device="cpu")
        return assembled(family, family.denoiser)
    device = next(denoiser.parameters()).device
    if not family.remembered:
        family.load("vae", "text_encoders", device=device)
        return assembled(family, denoiser)
    family.load("vae", device=device)
    family.load_tokenizers()
    return recall.remembering(assembled(family, denoiser, encoders=False), family, device)


def assembled(family: Family, denoiser: nn.Module, encoders: bool = True) -> Any:
    """The pipeline of this denoiser and the family's loaded parts, without the text encoders where they are absent."""
    import diffusers

    parts: dict[str, Any] = {name: None for pair in family.text_encoder_names for name in pair}
    for encoder, tokenizer in family.text_parts():
        parts |= {encoder: family.part(encoder) if encoders else None, tokenizer: family.part(tokenizer)}
    parts |= {name: vae.working_in_float32(family.part(name)) for name in family.components("vae")}
    parts |= {family.denoiser_name: denoiser, "scheduler": family.scheduler()}
    made = getattr(diffusers, family.pipeline_class)(**parts, **family.pipeline_options())
    made.set_progress_bar_config(disable=True)
    return made
