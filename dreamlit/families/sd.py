"""Stable Diffusion 1.x and 2.x (arXiv 2112.10752)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamlit.families.latent_diffusion import LatentDiffusion
from dreamlit.families.text import denoiser_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning


class SD(LatentDiffusion):
    """Stable Diffusion 1.x and 2.x: one text encoder; epsilon or v prediction."""

    pipeline_class = "StableDiffusionPipeline"
    tiny_autoencoder = "madebyollin/taesd"
    single_file_layouts = {
        "cond_stage_model.transformer.": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "cond_stage_model.model.": None,  # SD 2.x: the file does not say whether it predicts epsilon or v
    }

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 77, D]."""
        import torch

        encoder = self.part("text_encoder")
        ids, mask = (value.to(encoder.device) for value in self.tokens(self.part("tokenizer"), prompts))
        # few models say that padding is masked; Stable Diffusion itself attends to it
        masked = getattr(encoder.config, "use_attention_mask", False)
        with torch.no_grad():
            output = encoder(ids, attention_mask=mask if masked else None, output_hidden_states=True)
            embeds = output[0]
            if self.clip_skip is not None:
                last_norm = getattr(encoder, "text_model", encoder).final_layer_norm
                embeds = last_norm(output.hidden_states[-(self.clip_skip + 1)])
        return {"prompt_embeds": embeds.float().cpu()}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        denoiser = self.denoiser if denoiser is None else denoiser
        embeds = conditioning["prompt_embeds"].to(x_t.device, dtype := denoiser_dtype(denoiser))
        return denoiser(x_t.to(dtype), t, encoder_hidden_states=embeds, return_dict=False)[0].float()

    def pipeline_options(self) -> dict[str, object]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
