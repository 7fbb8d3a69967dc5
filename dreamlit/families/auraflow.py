"""AuraFlow (fal, 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamlit.families.flow_transformer import FlowTransformer
from dreamlit.families.text import denoiser_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning


class AuraFlow(FlowTransformer):
    """AuraFlow: a Pile-T5, joint and single blocks, SDXL's autoencoder."""

    pipeline_class = "AuraFlowPipeline"
    original_mark = "double_layers.0.attn.w1q.weight"
    export_prefix = "transformer."
    tiny_autoencoder = "madebyollin/taesdxl"
    usual_guidance = 3.5
    latent_channels = 4
    text_encoder_names = (("text_encoder", "tokenizer"),)
    t5_names = ("text_encoder", "tokenizer")
    t5_tokens = 256

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 256, D], zero where there is padding."""
        embeds, mask = self.masked_t5(prompts)
        return {"prompt_embeds": embeds.float().cpu() * mask.unsqueeze(-1)}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype = x_t.device, denoiser_dtype(denoiser)
        output = denoiser(
            x_t.to(dtype),
            encoder_hidden_states=conditioning["prompt_embeds"].to(device, dtype),
            timestep=(t / 1000).to(dtype),
            return_dict=False,
        )
        return output[0].float()
