"""Kolors (Kuaishou, 2024)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from dreamlit.families import text
from dreamlit.families.sdxl import SizedUNet

if TYPE_CHECKING:
    from dreamlit.types import Conditioning

TOKENS = 256


class Kolors(SizedUNet):
    """Kolors: SDXL's UNet and autoencoder with ChatGLM3, which reads Chinese and English."""

    pipeline_class = "KolorsPipeline"
    usual_guidance = 5.0

    def option_faults(self) -> list[str]:
        faults = super().option_faults()
        if importlib.util.find_spec("sentencepiece") is None:
            faults.append(
                "the tokenizer needs the library sentencepiece, which is not here: pip install 'dreamlit[kolors]'"
            )
        return faults

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 256, D] of the last layer but one, `pooled_prompt_embeds` [B, D] of the last token.

        The padding stands before the text; the UNet reads it too.
        """
        ids, mask = text.tokens(self.part("tokenizer"), prompts, self._told, TOKENS)
        encoder = self.part("text_encoder")
        places = (mask.cumsum(1) - 1).clamp(min=0)
        given = {"attention_mask": mask.to(encoder.device), "position_ids": places.to(encoder.device)}
        layers = text.run(encoder, ids, output_hidden_states=True, **given).hidden_states  # each [256, B, D]
        return {
            "prompt_embeds": layers[-2].transpose(0, 1).float().cpu().contiguous(),
            "pooled_prompt_embeds": layers[-1][-1].float().cpu(),
        }

    def pipeline_options(self) -> dict[str, object]:
        # with true, which some configurations have, the pipeline of diffusers 0.42 fails without a negative prompt
        return {"force_zeros_for_empty_prompt": False}
