"""Families trained by the process of DDPM (Ho et al. 2020), as their scheduler's configuration describes it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

from dreamlit.errors import ModelError
from dreamlit.families import loading
from dreamlit.families.base import Family
from dreamlit.families.files import read_json

if TYPE_CHECKING:
    from dreamlit.process import Diffusion

PREDICTION_TYPES = ("epsilon", "v_prediction")


class DDPM(Family):
    """A model that predicts eps or v on a schedule of betas."""

    noise = "DDPM, eps or v"

    def __init__(
        self,
        path: str,
        *,
        prediction_type: Literal["epsilon", "v_prediction"] | None = None,
        zero_terminal_snr: bool | None = None,
        **options: Any,
    ) -> None:
        """Remember what to load.

        Args:
            path: A diffusers folder, a hub id (owner/name) or one .safetensors file in the original layout.
            prediction_type: What the denoiser predicts; by default what the model's scheduler says.
            zero_terminal_snr: Rescale the schedule to end in pure noise (arXiv 2305.08891); by default as it was.
            options: See `Family`.
        """
        super().__init__(path, **options)
        if prediction_type not in (None, *PREDICTION_TYPES):
            raise ModelError(f"prediction_type {prediction_type!r}: one of {', '.join(PREDICTION_TYPES)} is allowed")
        self.prediction_type = prediction_type
        self.zero_terminal_snr = zero_terminal_snr

    def option_faults(self) -> list[str]:
        try:
            return self.process_faults()
        except ModelError as error:
            return [str(error)]

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
