"""DeepFloyd IF stage II: from small images to large ones (Saharia et al. 2022, Imagen, arXiv 2205.11487)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ModelError
from dreamlit.families.chain import Chain
from dreamlit.families.deepfloyd import DeepFloydI
from dreamlit.families.files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamlit.types import Batch, Conditioning

UPSCALING = 4
"""Pixels of stage II per pixel of stage I along a side."""


class DeepFloydII(DeepFloydI):
    """DeepFloyd IF stage II: four times as many pixels a side, from the small image with noise on it, and the text."""

    pipeline_class = "IFSuperResolutionPipeline"
    usual_guidance = 4.0
    drawn_with = "stage_one"

    def __init__(self, path: str, *, stage_one: str | None = None, noise_level: int = 250, **options: Any) -> None:
        """Remember what to load.

        Args:
            path: A diffusers folder or a hub id (owner/name).
            stage_one: Folder or hub id of stage I. With it images are drawn from prompts by both stages; without it
                previews show photos of the datasets that were made small and are enlarged again.
            noise_level: Timestep of the noise on the small image in sampling. In training each sample gets one of
                its own, from 0 to the last (noise conditioning augmentation of the paper, section 2.4).
            options: See `DDPM` and `Family`.
        """
        super().__init__(path, **options)
        self.noise_level = noise_level
        offline = self.files.local_files_only
        self.stage_one = DeepFloydI(stage_one, dtype=self.dtype, local_files_only=offline) if stage_one else None

    @property
    def denoiser_channels(self) -> int:
        return 6

    @property
    def side_multiple(self) -> int:
        first = self.stage_one.side_multiple if self.stage_one else 1
        return max(super().side_multiple, UPSCALING * first)

    def option_faults(self) -> list[str]:
        faults = super().option_faults()
        last = self.noising().num_timesteps - 1
        if not 0 <= self.noise_level <= last:
            faults.append(f"noise_level {self.noise_level}: a timestep from 0 to {last} is allowed")
        try:
            if self.stage_one:
                self.stage_one.check()
        except ModelError as error:
            faults.append(f"stage_one: {error}")
        return faults

    def noising(self) -> Any:
        """The process that the small image's noise comes from."""
        import torch
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        from dreamlit.process import Diffusion

        config = read_json(self.files.configuration("image_noising_scheduler/scheduler_config.json"))
        scheduler: Any = DDPMScheduler.from_config(config)
        return Diffusion(scheduler.alphas_cumprod.to(torch.float64))

    def conditioned(self, batch: Batch, seed: int) -> Batch:
        """Adds the small image, enlarged and with noise, [B, 3, H, W], and the level of that noise, [B]."""
        import torch

        from dreamlit.seeds import address, generator

        process, x0 = self.noising(), batch.latents
        levels = [address(seed, "low resolution level", key) % process.num_timesteps for key in batch.keys]
        level = torch.tensor(levels, device=x0.device)
        noise = [torch.randn(x0.shape[1:], generator=generator(seed, "low resolution", key)) for key in batch.keys]
        low = process.noise(enlarged(x0), torch.stack(noise).to(x0.device), level)
        return dataclasses.replace(
            batch, conditioning={**batch.conditioning, "low_resolution": low, "noise_level": level}
        )

    def _input(self, x_t: Tensor, conditioning: Conditioning) -> tuple[Tensor, dict[str, Any]]:
        import torch

        if "low_resolution" not in conditioning:  # two models are compared on noise
            return torch.cat([x_t, torch.zeros_like(x_t)], 1), {"class_labels": torch.zeros(len(x_t)).to(x_t)}
        low, level = (conditioning[name].to(x_t.device) for name in ("low_resolution", "noise_level"))
        return torch.cat([x_t, low.to(x_t.dtype)], dim=1), {"class_labels": level}

    def call_options(self) -> dict[str, Any]:
        return {**super().call_options(), "noise_level": self.noise_level}

    def pipeline(self, denoiser: nn.Module | None = None) -> Any:
        last = super().pipeline(denoiser)
        return TwoStages(last, self.stage_one.pipeline().to(last.device) if self.stage_one else None)

    def pipeline_options(self) -> dict[str, Any]:
        from dreamlit.families.loading import load_config_object

        name = "image_noising_scheduler"
        return {**super().pipeline_options(), name: load_config_object(self.files, name)}


class TwoStages(Chain):
    """Stage II on what stage I has drawn, or on a photo made small."""

    def __call__(
        self, prompt: Any, *, image: Any = None, width: int | None = None, height: int | None = None, **options: Any
    ) -> Any:
        """Images of the prompts, or of one photo; options as of stage I's pipeline."""
        if image is not None:
            width, height = (int(side) for side in image[0].size)
            small = [image[0].resize((width // UPSCALING, height // UPSCALING))]
        else:
            side: int = self.last.unet.config.sample_size
            width, height = width or side, height or side
            size = {"width": width // UPSCALING, "height": height // UPSCALING, "output_type": "pt"}
            given = {name: value for name, value in options.items() if name != "noise_level"}
            small = self.first(prompt, **size, **given).images
        return self.last(prompt, image=small, width=width, height=height, **options)


def enlarged(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] made small, with antialiasing, and large again as the pipeline does it."""
    from torch.nn import functional

    height, width = pixels.shape[2:]
    size = (height // UPSCALING, width // UPSCALING)
    small = functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    return functional.interpolate(small, (height, width), mode="bilinear", align_corners=True)
