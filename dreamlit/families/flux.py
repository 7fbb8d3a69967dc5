"""Flux.1 dev and schnell (Black Forest Labs, 2024)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ModelError
from dreamlit.families.files import read_json
from dreamlit.families.flow_transformer import FlowTransformer
from dreamlit.families.text import denoiser_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning

GUIDANCE = 1.0


class Flux(FlowTransformer):
    """Flux.1: CLIP's pooled text and a T5, packed latents, rotary positions, guidance as an input (dev)."""

    pipeline_class = "FluxPipeline"
    original_mark = "double_blocks.0.img_attn.qkv.weight"
    tiny_autoencoder = "madebyollin/taef1"
    guided = False
    usual_guidance = 3.5
    text_encoder_names = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    t5_names = ("text_encoder_2", "tokenizer_2")
    t5_tokens = 512

    def __init__(self, path: str, *, guidance: float | None = None, **options: Any) -> None:
        """Remember what to load.

        Args:
            path: A diffusers folder or a hub id (owner/name).
            guidance: What the denoiser is told as its guidance in training, at least 0 (default 1). At 1 the model
                predicts unguided, as photos are: higher values would teach it the photos as if they were exaggerated.
            options: See `FlowTransformer` and `Family`.
        """
        super().__init__(path, **options)
        if guidance is not None and not 0 <= guidance < math.inf:
            raise ModelError(f"guidance {guidance}: a finite number from 0 up is allowed")
        self.guidance = guidance

    @property
    def denoiser_channels(self) -> int:
        return self.latent_channels * self.patch**2

    def option_faults(self) -> list[str]:
        faults = super().option_faults()
        config = read_json(self.files.configuration("transformer/config.json"))
        if self.guidance is not None and not config.get("guidance_embeds", False):
            faults.append(f"guidance {self.guidance} does nothing: this model (schnell) has no guidance input")
        return faults

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 512, D] of T5 and `pooled_prompt_embeds` [B, D] of CLIP."""
        pooled = self.clip(0, prompts).pooler_output
        return {"prompt_embeds": self.t5(prompts).float().cpu(), "pooled_prompt_embeds": pooled.float().cpu()}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        import torch

        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype, (height, width) = x_t.device, denoiser_dtype(denoiser), x_t.shape[2:]
        embeds = conditioning["prompt_embeds"].to(device, dtype)
        config: Any = denoiser.config
        guidance = torch.full((len(x_t),), GUIDANCE if self.guidance is None else self.guidance, device=device)
        output = denoiser(
            hidden_states=packed(x_t).to(dtype),
            timestep=t.to(dtype) / 1000,
            guidance=guidance if config.guidance_embeds else None,
            pooled_projections=conditioning["pooled_prompt_embeds"].to(device, dtype),
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=device, dtype=dtype),
            img_ids=positions(height // 2, width // 2).to(device, dtype),
            return_dict=False,
        )
        return unpacked(output[0].float(), height, width)


def packed(latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] -> tokens [B, h/2 w/2, 4 C], each of 2 x 2 cells."""
    count, channels, height, width = latents.shape
    cells = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(count, (height // 2) * (width // 2), channels * 4)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`; height and width of the latents in cells."""
    cells = tokens.reshape(len(tokens), height // 2, width // 2, tokens.shape[-1] // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), tokens.shape[-1] // 4, height, width)


def positions(rows: int, columns: int) -> Tensor:
    """[rows columns, 3]: 0, row and column of each token, for the rotary embedding."""
    import torch

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float()
