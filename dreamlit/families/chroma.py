"""Chroma (lodestones, 2025): a Flux without CLIP and without guidance distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamlit.families.flow_transformer import FlowTransformer
from dreamlit.families.flux import packed, positions, unpacked
from dreamlit.families.text import denoiser_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning


class Chroma(FlowTransformer):
    """Chroma: Flux's blocks with a T5 alone, whose padding is masked but for its first token."""

    pipeline_class = "ChromaPipeline"
    original_mark = "double_blocks.0.img_attn.qkv.weight"
    tiny_autoencoder = "madebyollin/taef1"
    usual_guidance = 5.0
    text_encoder_names = (("text_encoder", "tokenizer"),)
    t5_names = ("text_encoder", "tokenizer")
    t5_tokens = 512

    @property
    def denoiser_channels(self) -> int:
        return self.latent_channels * self.patch**2

    def prepare_denoiser(self) -> None:
        super().prepare_denoiser()
        if self.gradient_checkpointing:
            keep_mask(self.denoiser)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 512, D] and `prompt_mask` [B, 512]: 1 for the text and one token of padding."""
        import torch

        embeds, mask = self.masked_t5(prompts)
        places = torch.arange(mask.shape[1])
        return {"prompt_embeds": embeds.float().cpu(), "prompt_mask": (places <= mask.sum(1, keepdim=True)).float()}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        import torch

        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype, (height, width) = x_t.device, denoiser_dtype(denoiser), x_t.shape[2:]
        embeds, tokens = conditioning["prompt_embeds"].to(device, dtype), packed(x_t).to(dtype)
        mask = conditioning["prompt_mask"].to(device, dtype)
        output = denoiser(
            hidden_states=tokens,
            timestep=t.to(dtype) / 1000,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=device, dtype=dtype),
            img_ids=positions(height // 2, width // 2).to(device, dtype),
            attention_mask=torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1),
            return_dict=False,
        )
        return unpacked(output[0].float(), height, width)


def keep_mask(denoiser: Any) -> None:
    """Hands the attention mask to the single blocks where they are recomputed: diffusers 0.42 leaves it out there."""
    recompute, masks = denoiser._gradient_checkpointing_func, {}

    def remember(module: Any, inputs: Any, options: dict[str, Any]) -> None:
        masks["latest"] = options["attention_mask"]

    def recompute_masked(block: Any, *inputs: Any) -> Any:
        left_out = type(block).__name__ == "ChromaSingleTransformerBlock" and len(inputs) == 3
        return recompute(block, *inputs, *([masks["latest"]] if left_out else []))

    denoiser.register_forward_pre_hook(remember, with_kwargs=True)
    denoiser._gradient_checkpointing_func = recompute_masked
