"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamlit.families.files import read_json
from dreamlit.families.flow_transformer import FlowTransformer
from dreamlit.families.text import denoiser_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning


class SD3(FlowTransformer):
    """Stable Diffusion 3 and 3.5: two CLIP text encoders and a T5, joint attention over text and image."""

    pipeline_class = "StableDiffusion3Pipeline"
    original_mark = "joint_blocks.0.x_block.attn.qkv.weight"
    tiny_autoencoder = "madebyollin/taesd3"
    text_encoder_names = (
        ("text_encoder", "tokenizer"),
        ("text_encoder_2", "tokenizer_2"),
        ("text_encoder_3", "tokenizer_3"),
    )
    usual_guidance = 7.0
    t5_names = ("text_encoder_3", "tokenizer_3")
    t5_tokens = 256

    def __init__(self, path: str, *, use_t5: bool = True, **options: Any) -> None:
        """Remember what to load.

        Args:
            path: A diffusers folder or a hub id (owner/name).
            use_t5: Load the T5 text encoder (4.8 billion parameters), if the model has it. Without it the prompt is
                read by CLIP alone, 77 tokens of it, in training and in sampling.
            options: See `FlowTransformer` and `Family`.
        """
        super().__init__(path, **options)
        self.use_t5 = use_t5

    def text_parts(self) -> tuple[tuple[str, str], ...]:
        without = not self.use_t5 or self.files.index.get("text_encoder_3") in (None, [None, None])
        return self.text_encoder_names[:2] if without else self.text_encoder_names

    def text_options(self) -> dict[str, Any]:
        return {**super().text_options(), "t5": self.t5_names in self.text_parts()}

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 77 + 256, D] of CLIP, filled up with zeros, then of T5; `pooled_prompt_embeds`."""
        import torch

        outputs = [self.clip(number, prompts, output_hidden_states=True) for number in (0, 1)]
        clip = torch.cat([output.hidden_states[-2].float().cpu() for output in outputs], dim=-1)
        pooled = torch.cat([output[0].float().cpu() for output in outputs], dim=-1)
        width = read_json(self.files.configuration("transformer/config.json"))["joint_attention_dim"]
        if self.t5_names in self.text_parts():
            t5 = self.t5(prompts).float().cpu()
        else:
            t5 = torch.zeros(len(prompts), self.t5_tokens, width)
        clip = torch.nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return {"prompt_embeds": torch.cat([clip, t5], dim=1), "pooled_prompt_embeds": pooled}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype = x_t.device, denoiser_dtype(denoiser)
        output = denoiser(
            hidden_states=x_t.to(dtype),
            timestep=t,
            encoder_hidden_states=conditioning["prompt_embeds"].to(device, dtype),
            pooled_projections=conditioning["pooled_prompt_embeds"].to(device, dtype),
            return_dict=False,
        )
        return output[0].float()
