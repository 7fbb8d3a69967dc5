"""DeepFloyd IF on pixels, and its stage I: after Imagen (Saharia et al. 2022, arXiv 2205.11487)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dreamlit.families import fingerprints, text
from dreamlit.families.ddpm import DDPM
from dreamlit.families.files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Conditioning

TOKENS = 77


class DeepFloydI(DDPM):
    """DeepFloyd IF stage I: from text to images of 64 x 64 pixels or so, by a T5 and a UNet on pixels.

    The UNet's output has a second half, the variance of the step, which gets no loss.
    """

    pipeline_class = "IFPipeline"
    latent_channels = 3
    usual_guidance = 7.0

    @property
    def stride(self) -> int:
        return 1

    @property
    def side_multiple(self) -> int:
        """The UNet halves between its blocks."""
        return 2 ** (len(read_json(self.files.configuration("unet/config.json"))["block_out_channels"]) - 1)

    def components(self, part: str) -> tuple[str, ...]:
        return () if part == "vae" else super().components(part)

    def option_faults(self) -> list[str]:
        given = {"vae": self.overrides.get("vae"), "tiny_vae": self.tiny_vae_files}
        idle = [name for name, value in given.items() if value]
        return [*super().option_faults(), *(f"{name} does nothing: this model works on pixels" for name in idle)]

    def fingerprint(self, part: str) -> str:
        return fingerprints.of("pixels") if part == "vae" else super().fingerprint(part)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """`prompt_embeds` [B, 77, D] of the prompts in lower case, as the pipelines read them."""
        ids, mask = text.tokens(self.part("tokenizer"), [p.lower().strip() for p in prompts], self._told, TOKENS)
        encoder = self.part("text_encoder")
        return {"prompt_embeds": text.run(encoder, ids, attention_mask=mask.to(encoder.device))[0].float().cpu()}

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        denoiser = self.denoiser if denoiser is None else denoiser
        embeds = conditioning["prompt_embeds"].to(x_t.device, dtype := text.denoiser_dtype(denoiser))
        pixels, more = self._input(x_t, conditioning)
        output = denoiser(pixels.to(dtype), t, encoder_hidden_states=embeds, return_dict=False, **more)[0]
        return output[:, :3].float()

    def _input(self, x_t: Tensor, conditioning: Conditioning) -> tuple[Tensor, dict[str, Any]]:
        """What the UNet gets: pixels, and further arguments."""
        return x_t, {}

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """The pixels themselves. Errors: `ValueError` for a wrong shape or range."""
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels {list(pixels.shape)}: [B, 3, H, W] is expected")
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(f"pixels lie in [{low:g}, {high:g}]; [-1, 1] is expected")
        return pixels.float().cpu()

    def decode(self, latents: Tensor) -> Tensor:
        return latents.float().cpu()

    def quick_decoder(self, device: Any = "cpu") -> Callable[[Tensor], Tensor]:
        return self.decode

    def call_options(self) -> dict[str, Any]:
        return {"clean_caption": False}  # cleaning needs further libraries, and captions are not cleaned in training

    def pipeline_options(self) -> dict[str, Any]:
        absent = dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"))
        return {**absent, "requires_safety_checker": False}
