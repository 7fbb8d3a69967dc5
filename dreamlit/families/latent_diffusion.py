"""What Stable Diffusion and SDXL share: CLIP prompts and a DDPM schedule."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dreamlit.errors import ModelError
from dreamlit.families import loading, text
from dreamlit.families.base import Family
from dreamlit.families.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from dreamlit.process import Diffusion

PREDICTION_TYPES = ("epsilon", "v_prediction")


class LatentDiffusion(Family):
    """A UNet on the latents of an autoencoder, conditioned on CLIP embeddings."""

    layers_left_out: ClassVar[int] = 0
    """Layers at the end of each text encoder that the family never uses."""

    def __init__(
        self,
        path: str,
        *,
        clip_skip: int | None = None,
        prediction_type: Literal["epsilon", "v_prediction"] | None = None,
        zero_terminal_snr: bool | None = None,
        **options: Any,
    ) -> None:
        """Remember what to load.

        Args:
            path: A diffusers folder, a hub id (owner/name) or one .safetensors file in the original layout.
            clip_skip: Layers to leave out at the end of each text encoder, as in diffusers: 1 takes one layer less.
            prediction_type: What the denoiser predicts; by default what the model's scheduler says.
            zero_terminal_snr: Rescale the schedule to end in pure noise (arXiv 2305.08891); by default as it was.
            options: See `Family`.
        """
        super().__init__(path, **options)
        if clip_skip is not None and clip_skip < 0:
            raise ModelError(f"clip_skip {clip_skip}: a number of layers from 0 up is allowed")
        if prediction_type not in (None, *PREDICTION_TYPES):
            raise ModelError(f"prediction_type {prediction_type!r}: one of {', '.join(PREDICTION_TYPES)} is allowed")
        self.clip_skip = clip_skip
        self.prediction_type = prediction_type
        self.zero_terminal_snr = zero_terminal_snr
        self._told: set[str] = set()

    def option_faults(self) -> list[str]:
        try:
            faults = self.process_faults()
        except ModelError as error:
            faults = [str(error)]
        for name in self.components("text_encoders") if self.clip_skip else ():
            layers = read_json(self.files.configuration(f"{name}/config.json")).get("num_hidden_layers", 0)
            if self.clip_skip and self.clip_skip + self.layers_left_out >= layers:
                faults.append(f"clip_skip {self.clip_skip}: {name} has only {layers} layers")
        return faults

    def process_faults(self) -> list[str]:
        """Faults of the model's noise process with this family's overrides. Errors: as `prediction`."""
        faults = []
        if self.prediction() == "epsilon" and self.zero_terminal_snr:
            faults.append(
                "zero_terminal_snr: true needs a model that predicts v: at a step of pure noise eps says nothing of "
                "the picture, so that no sampler can start there. Leave it out, or set prediction_type"
            )
        if not {"beta_start", "trained_betas"} & self.schedule().keys():
            faults.append(
                f"the model's scheduler is {self.files.index['scheduler'][1]}, which has no beta schedule; "
                f"{type(self).__name__} trains models of the DDPM kind, with beta_start and beta_end"
            )
        return faults

    def text_options(self) -> dict[str, Any]:
        return {**super().text_options(), "clip_skip": self.clip_skip}

    def schedule(self) -> dict[str, Any]:
        """The scheduler's configuration with this family's overrides."""
        config = read_json(self.files.configuration("scheduler/scheduler_config.json"))
        if self.prediction_type is not None:
            config["prediction_type"] = self.prediction_type
        if self.zero_terminal_snr is not None:
            config["rescale_betas_zero_snr"] = self.zero_terminal_snr
        if self.zero_terminal_snr:
            config["timestep_spacing"] = "trailing"  # sampling must begin at the step of pure noise
        return config

    def process(self) -> Diffusion:
        import torch
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        from dreamlit.process import Diffusion

        scheduler: Any = DDPMScheduler.from_config(self.schedule())
        return Diffusion(scheduler.alphas_cumprod.to(torch.float64), self.prediction())

    def prediction(self) -> Literal["epsilon", "v_prediction"]:
        """What the denoiser predicts. Errors: `ModelError` if the model's own scheduler names something else."""
        kind = self.schedule().get("prediction_type", "epsilon")
        if kind not in PREDICTION_TYPES:
            raise ModelError(
                f"the model predicts {kind!r}; set prediction_type to one of {', '.join(PREDICTION_TYPES)}"
            )
        return kind

    def scheduler(self) -> Any:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        config = self.schedule()
        kind = loading.component_class(self.files.index, "scheduler")
        if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in inspect.signature(kind).parameters:
            kind = DDIMScheduler  # the model's own sampler does not know such a schedule
        return kind.from_config(config)

    def tokens(self, tokenizer: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both [B, 77]. A longer prompt is cut, and said once."""
        return text.tokens(tokenizer, prompts, self._told)
