"""Qwen-Image (Wu et al. 2025, arXiv 2508.02324)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dreamlit.families import text
from dreamlit.families.flow_transformer import FlowTransformer
from dreamlit.families.flux import packed, unpacked

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning

TOKENS = 512
"""What a call of the pipeline keeps of a prompt."""


class QwenImage(FlowTransformer):
    """Qwen-Image: Qwen2.5-VL, told to describe an image, two streams of joint attention, an autoencoder of videos."""

    pipeline_class = "QwenImagePipeline"
    usual_guidance = 4.0
    guidance_name = "true_cfg_scale"
    led_away_from = " "
    export_prefix = "transformer."

    @property
    def denoiser_channels(self) -> int:
        return self.latent_channels * self.patch**2

    def text_options(self) -> dict[str, Any]:
        return {**super().text_options(), "template": template()}

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 512, D], 0 after the text, and `prompt_mask` [B, 512]: 1 for text.

        Of the pipeline's template, what stands before the prompt is read and then dropped.
        """
        import torch

        ahead, behind, dropped = template()
        tokenizer, encoder = self.part("tokenizer"), self.part("text_encoder").model  # without the logits
        tokenizer.padding_side = "right"
        ids, mask = text.tokens(tokenizer, prompts, self._told, TOKENS + dropped, ahead, behind)
        longest = int(mask.sum(1).max())
        output = text.run(encoder, ids[:, :longest], attention_mask=mask[:, :longest].to(encoder.device))
        read, mask = output.last_hidden_state[:, dropped:].float().cpu(), mask[:, dropped:].float()
        embeds = torch.zeros(*mask.shape, read.shape[-1])
        embeds[:, : read.shape[1]] = read * mask[:, : read.shape[1], None]
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype, (height, width) = x_t.device, text.denoiser_dtype(denoiser), x_t.shape[2:]
        mask = conditioning["prompt_mask"].to(device).bool()
        longest = int(mask.sum(1).max())  # padding is masked, so that all of it that can be left out is
        mask = mask[:, :longest]
        output = denoiser(
            hidden_states=packed(x_t).to(dtype),
            timestep=t.to(dtype) / 1000,
            encoder_hidden_states=conditioning["prompt_embeds"][:, :longest].to(device, dtype),
            encoder_hidden_states_mask=None if mask.all() else mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
            return_dict=False,
        )
        return unpacked(output[0].float(), height, width)


@functools.cache
def template() -> tuple[str, str, int]:
    """What the pipeline puts before and after a prompt, and how many tokens it drops."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

    class Bare(QwenImagePipeline):
        """Its constructor sets the template; it needs no parts for that."""

        def register_modules(self, **parts: Any) -> None:
            self.vae = None

    bare: Any = Bare(*[None] * 5)  # pyright: ignore[reportArgumentType]
    ahead, behind = bare.prompt_template_encode.split("{}")
    return ahead, behind, bare.prompt_template_encode_start_idx
