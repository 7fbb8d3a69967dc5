"""Stable Diffusion XL base (arXiv 2307.01952)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamlit.families.ddpm import DDPM
from dreamlit.families.latent_diffusion import LatentDiffusion
from dreamlit.families.text import denoiser_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning


class SizedUNet(DDPM):
    """A UNet that is told pooled text and the sizes of the image."""

    tiny_autoencoder = "madebyollin/taesdxl"

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        import torch

        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype = x_t.device, denoiser_dtype(denoiser)
        added = {
            "text_embeds": conditioning["pooled_prompt_embeds"].to(device, dtype),
            # the pipeline's order: original (h, w), crop (top, left), target (h, w); bfloat16 would round the sizes
            "time_ids": frame.to(device, torch.float32),
        }
        embeds = conditioning["prompt_embeds"].to(device, dtype)
        output = denoiser(x_t.to(dtype), t, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False)
        return output[0].float()


class SDXL(SizedUNet, LatentDiffusion):
    """Stable Diffusion XL: two text encoders, and the image's size and crop as conditioning."""

    pipeline_class = "StableDiffusionXLPipeline"
    layers_left_out = 1
    text_encoder_names = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    single_file_layouts = {"conditioner.embedders.1.": "stabilityai/stable-diffusion-xl-base-1.0"}

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 77, D1 + D2] of the last layer but one, `pooled_prompt_embeds` [B, D2] of the second."""
        import torch

        embeds, pooled = [], None
        for encoder_name, tokenizer_name in self.text_encoder_names:
            encoder = self.part(encoder_name)
            ids, _ = self.tokens(self.part(tokenizer_name), prompts)
            with torch.no_grad():
                output = encoder(ids.to(encoder.device), output_hidden_states=True)
            embeds.append(output.hidden_states[-(1 + self.layers_left_out + (self.clip_skip or 0))].float().cpu())
            pooled = output[0].float().cpu()
        assert pooled is not None
        return {"prompt_embeds": torch.cat(embeds, dim=-1), "pooled_prompt_embeds": pooled}

    def pipeline_options(self) -> dict[str, object]:
        zeros = self.files.index.get("force_zeros_for_empty_prompt", True)
        return {"add_watermarker": False, "force_zeros_for_empty_prompt": zeros}
