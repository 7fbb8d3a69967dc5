"""What Stable Diffusion and SDXL share: CLIP prompts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from dreamlit.errors import ModelError
from dreamlit.families import text
from dreamlit.families.ddpm import DDPM
from dreamlit.families.files import read_json

if TYPE_CHECKING:
    from torch import Tensor


class LatentDiffusion(DDPM):
    """A UNet on the latents of an autoencoder, conditioned on CLIP embeddings."""

    layers_left_out: ClassVar[int] = 0
    """Layers at the end of each text encoder that the family never uses."""

    @property
    def drawn_multiple(self) -> int:
        """As for training, and 8, which diffusers' pipelines demand whatever the autoencoder."""
        return math.lcm(self.side_multiple, 8)

    def __init__(
        self,
        path: str,
        *,
        clip_skip: int | None = None,
        **options: Any,
    ) -> None:
        """Remember what to load.

        Args:
            path: A diffusers folder, a hub id (owner/name) or one .safetensors file in the original layout.
            clip_skip: Layers to leave out at the end of each text encoder, as in diffusers: 1 takes one layer less.
            options: See `DDPM` and `Family`.
        """
        super().__init__(path, **options)
        if clip_skip is not None and clip_skip < 0:
            raise ModelError(f"clip_skip {clip_skip}: a number of layers from 0 up is allowed")
        self.clip_skip = clip_skip

    def option_faults(self) -> list[str]:
        faults = super().option_faults()
        for name in self.components("text_encoders") if self.clip_skip else ():
            layers = read_json(self.files.configuration(f"{name}/config.json")).get("num_hidden_layers", 0)
            if self.clip_skip and self.clip_skip + self.layers_left_out >= layers:
                faults.append(f"clip_skip {self.clip_skip}: {name} has only {layers} layers")
        return faults

    def text_options(self) -> dict[str, Any]:
        return {**super().text_options(), "clip_skip": self.clip_skip}

    def tokens(self, tokenizer: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both [B, 77]. A longer prompt is cut, and said once."""
        return text.tokens(tokenizer, prompts, self._told)
