"""Flux.2 klein (Black Forest Labs, 2026), base and distilled to four steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamlit.families import text
from dreamlit.families.flow_transformer import FlowTransformer
from dreamlit.families.flux import packed, positions, unpacked

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.flow import FlowMatching
    from dreamlit.types import Conditioning

TOKENS = 512
LAYERS = (9, 18, 27)
"""States of Qwen3 that are read, one after the other for each token."""
MARK = "\x00"


class Flux2Klein(FlowTransformer):
    """Flux.2 klein: three layers of a Qwen3, latents that a batch norm scales, modulation shared by all blocks."""

    pipeline_class = "Flux2KleinPipeline"
    original_mark = "double_stream_modulation_img.lin.weight"
    latent_channels = 32

    @property
    def denoiser_channels(self) -> int:
        return self.latent_channels * self.patch**2

    @property
    def distilled(self) -> bool:
        """Whether it draws in few steps and without guidance. Errors: as `ModelFiles.index`."""
        return bool(self.files.index.get("is_distilled", False))

    @property
    def guided(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return not self.distilled

    @property
    def usual_guidance(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1.0 if self.distilled else 4.0

    def process(self) -> FlowMatching:
        from dreamlit.flow import EmpiricalShift, FlowMatching

        process = super().process()
        if self.shift is not None:
            return process
        return FlowMatching(EmpiricalShift(steps=4 if self.distilled else 50), process.num_timesteps, self.patch)

    def pipeline_options(self) -> dict[str, Any]:
        return {"is_distilled": self.distilled}

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 512, 3 D] of the prompts in the tokenizer's chat template; padding is read like text."""
        import torch

        tokenizer, encoder = self.part("tokenizer"), self.part("text_encoder").model  # without the logits
        message = [{"role": "user", "content": MARK}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        ahead, behind = tokenizer.apply_chat_template(message, **options).split(MARK)
        ids, mask = text.tokens(tokenizer, prompts, self._told, TOKENS, ahead, behind)
        given = {"attention_mask": mask.to(encoder.device), "output_hidden_states": True, "use_cache": False}
        states = text.run(encoder, ids, **given).hidden_states
        return {"prompt_embeds": torch.cat([states[layer] for layer in LAYERS], dim=-1).float().cpu()}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        import torch

        denoiser = self.denoiser if denoiser is None else denoiser
        device, dtype, (height, width) = x_t.device, text.denoiser_dtype(denoiser), x_t.shape[2:]
        embeds = conditioning["prompt_embeds"].to(device, dtype)
        places = torch.arange(embeds.shape[1], device=device)
        output = denoiser(
            hidden_states=packed(x_t).to(dtype),
            timestep=t.to(dtype) / 1000,
            encoder_hidden_states=embeds,
            txt_ids=torch.nn.functional.pad(places[:, None], (3, 0)),  # time, row and column 0, place in the text
            img_ids=torch.nn.functional.pad(positions(height // 2, width // 2), (0, 1)).to(device),
            return_dict=False,
        )
        return unpacked(output[0].float(), height, width)
