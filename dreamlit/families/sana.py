"""Sana (Xie et al. 2024, arXiv 2410.10629)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from dreamlit.families import text
from dreamlit.families.flow_transformer import FlowTransformer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning

TOKENS = 300


class Sana(FlowTransformer):
    """Sana: linear attention on latents of 32 pixels a cell, and Gemma 2, which is told to enhance the prompt."""

    pipeline_class = "SanaPipeline"
    usual_guidance = 4.5
    latent_channels = 32
    patch = 1
    convolutions = True

    def text_options(self) -> dict[str, Any]:
        return {**super().text_options(), "instruction": instruction()}

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 300, D] of the prompts in lower case, and `prompt_mask` [B, 300]: 0 for padding.

        The pipeline's instruction stands before each of them. An empty one is without it, as the pipeline reads what
        guidance leads away from.
        """
        prompts = [prompt.lower().strip() for prompt in prompts]
        embeds, mask = self._read(prompts, instruction())
        if blank := [row for row, prompt in enumerate(prompts) if not prompt]:
            embeds[blank], mask[blank] = self._read([""] * len(blank), "")
        return {"prompt_embeds": embeds.float().cpu(), "prompt_mask": mask.float()}

    def _read(self, prompts: list[str], ahead: str) -> tuple[Tensor, Tensor]:
        """Gemma's last layer, and the mask: the first token and the last 299 after `ahead`."""
        tokenizer, encoder = self.part("tokenizer"), self.part("text_encoder")
        tokenizer.padding_side = "right"
        length = len(tokenizer.encode(ahead)) + TOKENS - 2 if ahead else TOKENS
        ids, mask = text.tokens(tokenizer, prompts, self._told, length, ahead)
        embeds = text.run(encoder, ids, attention_mask=mask.to(encoder.device))[0]
        kept = [0, *range(length - TOKENS + 1, length)]
        return embeds[:, kept], mask[:, kept]

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype = x_t.device, text.denoiser_dtype(denoiser)
        config: Any = denoiser.config
        output = denoiser(
            x_t.to(dtype),
            encoder_hidden_states=conditioning["prompt_embeds"].to(device, dtype),
            encoder_attention_mask=conditioning["prompt_mask"].to(device, dtype),
            timestep=t * config.timestep_scale,
            return_dict=False,
        )
        return output[0][:, : self.latent_channels].float()  # some models also predict a variance

    def call_options(self) -> dict[str, Any]:
        # binning draws another size than was asked for and resizes
        return {"clean_caption": False, "use_resolution_binning": False}


def instruction() -> str:
    """What the pipeline puts before a prompt unless it is told otherwise."""
    from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

    return "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
