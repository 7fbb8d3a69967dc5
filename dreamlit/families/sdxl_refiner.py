"""The refiner of Stable Diffusion XL (arXiv 2307.01952, section 2.5): the last, nearly clean part of the denoising."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ModelError
from dreamlit.families.chain import Chain
from dreamlit.families.sdxl import SDXL

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.process import Diffusion
    from dreamlit.types import Conditioning


class SDXLRefiner(SDXL):
    """SDXL's refiner: the larger text encoder alone, an aesthetic score, and only the timesteps with little noise."""

    pipeline_class = "StableDiffusionXLImg2ImgPipeline"
    drawn_with = "base"
    text_encoder_names = (("text_encoder_2", "tokenizer_2"),)
    single_file_layouts = {"conditioner.embedders.0.model.": "stabilityai/stable-diffusion-xl-refiner-1.0"}

    def __init__(
        self,
        path: str,
        *,
        refiner_training_strength: float = 0.2,
        refiner_training_invert: bool = False,
        data_aesthetic_score: float = 7.0,
        negative_aesthetic_score: float = 2.5,
        base: str | None = None,
        **options: Any,
    ) -> None:
        """Remember what to load.

        Args:
            path: A diffusers folder, a hub id (owner/name) or one .safetensors file in the original layout.
            refiner_training_strength: Share of the noise schedule that is trained on, above 0: 0.2 is its cleaner
                fifth, which SDXL's refiner was made for. Images are refined from there.
            refiner_training_invert: Train on the other part of the schedule instead, which is the base model's.
            data_aesthetic_score: What the denoiser is told as the quality of the photos (of about 0 to 10).
            negative_aesthetic_score: What it is told where guidance leads away from, in sampling.
            base: Folder or hub id of the SDXL base model. With it images are drawn from prompts, by the base first
                and then by the refiner; without it previews refine photos of the datasets.
            options: See `LatentDiffusion` and `Family`.
        """
        super().__init__(path, **options)
        if not 0 < refiner_training_strength <= 1:
            raise ModelError(f"refiner_training_strength {refiner_training_strength}: above 0 and at most 1 is allowed")
        if refiner_training_invert and refiner_training_strength == 1:
            raise ModelError("refiner_training_invert: nothing is left of the schedule at refiner_training_strength 1")
        self.strength, self.invert = refiner_training_strength, refiner_training_invert
        self.aesthetic_scores = data_aesthetic_score, negative_aesthetic_score
        self.base = SDXL(base, dtype=self.dtype, local_files_only=self.files.local_files_only) if base else None

    def option_faults(self) -> list[str]:
        faults = super().option_faults()
        try:
            if self.base:
                self.base.check()
        except ModelError as error:
            faults.append(f"base: {error}")
        return faults

    def process(self) -> Diffusion:
        span = (self.strength, 1.0) if self.invert else (0.0, self.strength)
        return super().process().within(*span)

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, frame: Tensor, denoiser: nn.Module | None = None
    ) -> Tensor:
        import torch

        score = torch.full((len(frame), 1), self.aesthetic_scores[0])
        return super().predict(x_t, t, conditioning, torch.cat([frame[:, :4], score.to(frame.device)], 1), denoiser)

    def pipeline_options(self) -> dict[str, object]:
        index = self.files.index
        zeros = {"force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", False)}
        absent = {"text_encoder": None, "tokenizer": None}
        return {"add_watermarker": False, "requires_aesthetics_score": True, **zeros, **absent}

    def call_options(self) -> dict[str, Any]:
        good, bad = self.aesthetic_scores
        scores: dict[str, Any] = {"aesthetic_score": good, "negative_aesthetic_score": bad}
        return scores if self.base else {"strength": self.strength, **scores}

    def step_faults(self, steps: int) -> list[str]:
        if steps * self.strength >= 1:
            return []
        least = math.ceil(1 / self.strength)
        return [f"steps is {steps}: with refiner_training_strength {self.strength} at least {least} are needed"]

    def pipeline(self, denoiser: nn.Module | None = None) -> Any:
        refiner = super().pipeline(denoiser)
        refiner.vae.register_to_config(force_upcast=False)  # else it is cast down after the photo is encoded
        if not self.base:
            return refiner
        chain = BaseAndRefiner(refiner, self.base.pipeline().to(refiner.device))
        chain.border = 1 - self.strength
        return chain


class BaseAndRefiner(Chain):
    """SDXL's pipeline, then the refiner's, on one schedule."""

    border: float
    """Share of the schedule that the base denoises."""

    def __call__(
        self, prompt: Any, *, aesthetic_score: float, negative_aesthetic_score: float, generator: Any, **options: Any
    ) -> Any:
        """Images of the prompts; options as of the base's pipeline."""
        given = {**options, "generator": generator}
        latents = self.first(prompt, output_type="latent", denoising_end=self.border, **given).images
        scores = {"aesthetic_score": aesthetic_score, "negative_aesthetic_score": negative_aesthetic_score}
        given = {name: value for name, value in given.items() if name not in ("width", "height")}
        return self.last(prompt, image=latents, denoising_start=self.border, **scores, **given)
