"""Lumina-Image 2.0 (Qin et al. 2025, arXiv 2503.21758)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dreamlit.families import text
from dreamlit.families.flow_transformer import FlowTransformer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning

TOKENS = 256
MARK = " <Prompt Start> "


class Lumina2(FlowTransformer):
    """Lumina-Image 2.0: Gemma 2, told to be an assistant, and one stream over text and image after short own ones."""

    pipeline_class = "Lumina2Pipeline"
    original_mark = "layers.0.attention.qkv.weight"
    tiny_autoencoder = "madebyollin/taef1"
    usual_guidance = 4.0
    export_prefix = "transformer."
    unread_formats = {
        "kohya": "ComfyUI knows this model by fused layers of its original code, which an adapter on diffusers' layers "
        "does not fit; diffusers and `dreamlit sample` read diffusers"
    }

    def text_options(self) -> dict[str, Any]:
        return {**super().text_options(), "instruction": instruction()}

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 256, D], the last layer but one, and `prompt_mask` [B, 256]: 0 for padding.

        The pipeline's instruction stands before each prompt and counts. An empty one is without it, as the pipeline
        reads what guidance leads away from.
        """
        embeds, mask = self._read(prompts, instruction())
        if blank := [row for row, prompt in enumerate(prompts) if not prompt.strip()]:
            embeds[blank], mask[blank] = self._read([""] * len(blank), "")
        return {"prompt_embeds": embeds.float().cpu(), "prompt_mask": mask.float()}

    def _read(self, prompts: list[str], ahead: str) -> tuple[Tensor, Tensor]:
        tokenizer, encoder = self.part("tokenizer"), self.part("text_encoder")
        tokenizer.padding_side = "right"
        ids, mask = text.tokens(tokenizer, prompts, self._told, TOKENS, ahead)
        given = {"attention_mask": mask.to(encoder.device), "output_hidden_states": True, "use_cache": False}
        return text.run(encoder, ids, **given).hidden_states[-2], mask

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype = x_t.device, text.denoiser_dtype(denoiser)
        mask = conditioning["prompt_mask"].to(device).int()
        longest = int(mask.sum(1).max())  # padding is masked, so that all of it that can be left out is
        output = denoiser(
            hidden_states=x_t.to(dtype),
            timestep=1 - t / 1000,  # its time runs from noise to image, and so does its velocity
            encoder_hidden_states=conditioning["prompt_embeds"][:, :longest].to(device, dtype),
            encoder_attention_mask=mask[:, :longest],
            return_dict=False,
        )
        return -output[0].float()


@functools.cache
def instruction() -> str:
    """What the pipeline puts before a prompt unless it is told otherwise."""
    from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline

    class Bare(Lumina2Pipeline):
        """Its constructor sets the instruction; it needs no parts for that."""

        def register_modules(self, **parts: Any) -> None:
            self.transformer = self.tokenizer = None

    bare: Any = Bare(*[None] * 5)  # pyright: ignore[reportArgumentType]
    return bare.system_prompt + MARK
