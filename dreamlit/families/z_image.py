"""Z-Image (Tongyi-MAI 2025, arXiv 2511.22699)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamlit.families import text
from dreamlit.families.flow_transformer import FlowTransformer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning

TOKENS = 512
MARK = "\x00"


class ZImage(FlowTransformer):
    """Z-Image: a Qwen3, whose text and the image are one stream after short ones of their own."""

    pipeline_class = "ZImagePipeline"
    original_mark = "layers.0.attention.qkv.weight"
    tiny_autoencoder = "madebyollin/taef1"
    usual_guidance = 5.0
    guidance_offset = 1.0  # the pipeline adds its guidance times the difference to the guided prediction
    export_prefix = "transformer."

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 512, D], the last layer but one, 0 after the text, and `prompt_mask` [B, 512].

        The prompts stand in the tokenizer's chat template, whose end is cut first where they are too long.
        """
        tokenizer, encoder = self.part("tokenizer"), self.part("text_encoder")
        encoder = getattr(encoder, "model", encoder)  # without the logits
        tokenizer.padding_side = "right"
        message = [{"role": "user", "content": MARK}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        ahead, behind = tokenizer.apply_chat_template(message, **options).split(MARK)
        ids, mask = text.tokens(tokenizer, prompts, self._told, TOKENS, ahead, behind)
        given = {"attention_mask": mask.to(encoder.device), "output_hidden_states": True, "use_cache": False}
        embeds, mask = text.run(encoder, ids, **given).hidden_states[-2].float().cpu(), mask.float()
        return {"prompt_embeds": embeds * mask[..., None], "prompt_mask": mask}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        import torch

        denoiser = self.denoiser if denoiser is None else denoiser
        dtype, masks = text.denoiser_dtype(denoiser), conditioning["prompt_mask"].bool()
        embeds = conditioning["prompt_embeds"].to(x_t.device, dtype)
        output = denoiser(
            list(x_t.to(dtype).unsqueeze(2)),  # one frame
            1 - t / 1000,  # its time runs from noise to image, and so does its velocity
            [read[: int(mask.sum())] for read, mask in zip(embeds, masks, strict=True)],
            return_dict=False,
        )
        return -torch.stack(output[0]).squeeze(2).float()
