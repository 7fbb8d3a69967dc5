"""PixArt-Sigma (Chen et al. 2024, arXiv 2403.04692)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamlit.families import text
from dreamlit.families.ddpm import DDPM

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning

TOKENS = 300


class PixArtSigma(DDPM):
    """PixArt-Sigma: a small transformer that looks at a T5's tokens, with SDXL's autoencoder.

    The transformer's output has a second half, the variance of the step, which gets no loss.
    """

    pipeline_class = "PixArtSigmaPipeline"
    tiny_autoencoder = "madebyollin/taesdxl"
    usual_guidance = 4.5
    patch = 2
    denoiser_name = "transformer"
    export_prefix = "transformer."
    pipeline_prefix = "transformer"
    unread_formats = {
        "diffusers": "diffusers has no load_lora_weights for PixArtSigmaPipeline; "
        "ComfyUI and `dreamlit sample` read kohya"
    }

    def option_faults(self) -> list[str]:
        faults = super().option_faults()
        if self.channels_last:
            faults.append("channels_last does nothing for a transformer, which has no convolutions; leave it out")
        return faults

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 300, D] of the prompts in lower case, and `prompt_mask` [B, 300]: 0 for padding."""
        ids, mask = text.tokens(self.part("tokenizer"), [p.lower().strip() for p in prompts], self._told, TOKENS)
        encoder = self.part("text_encoder")
        embeds = text.run(encoder, ids, attention_mask=mask.to(encoder.device))[0]
        return {"prompt_embeds": embeds.float().cpu(), "prompt_mask": mask.float()}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype = x_t.device, text.denoiser_dtype(denoiser)
        output = denoiser(
            x_t.to(dtype),
            encoder_hidden_states=conditioning["prompt_embeds"].to(device, dtype),
            encoder_attention_mask=conditioning["prompt_mask"].to(device, dtype),
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},  # inputs of PixArt-Alpha
            return_dict=False,
        )
        return output[0][:, : self.latent_channels].float()

    def call_options(self) -> dict[str, Any]:
        # cleaning needs further libraries, and binning draws another size than was asked for and resizes
        return {"clean_caption": False, "use_resolution_binning": False}
