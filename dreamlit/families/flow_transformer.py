"""What SD3 and Flux share: a transformer on 16-channel latents that predicts a flow's velocity."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from dreamlit.errors import ModelError
from dreamlit.families import checks, loading, text
from dreamlit.families.base import Family
from dreamlit.families.files import ModelFiles, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from dreamlit.flow import FlowMatching


class FlowTransformer(Family):
    """A transformer trained by flow matching, conditioned on CLIP and T5."""

    noise = "flow matching"
    latent_channels = 16
    patch = 2
    denoiser_name = "transformer"
    export_prefix = "lora_transformer"
    pipeline_prefix = "transformer"
    convolutions: ClassVar[bool] = False
    """Whether there are convolutions in its blocks."""
    original_mark: ClassVar[str | None] = None
    """A tensor that files in this model's original layout have, if they can be read."""
    t5_names: ClassVar[tuple[str, str]]
    """The T5 encoder and its tokenizer, as `model_index.json` names them."""
    t5_tokens: ClassVar[int]
    """Tokens that T5 reads: what the pipeline takes unless it is told otherwise."""

    def __init__(
        self, path: str, *, shift: float | None = None, transformer: str | None = None, **options: Any
    ) -> None:
        """Remember what to load.

        Args:
            path: A diffusers folder or a hub id (owner/name).
            shift: How far training and sampling are moved toward the noise: sigma' = s sigma / (1 + (s - 1) sigma);
                by default as the model's scheduler says, by a number or by the size of the image.
            transformer: Other weights of the transformer: a .safetensors file of it alone or of a whole model, in
                diffusers' layout or, for most families, the original one. All else comes from `path`.
            options: See `Family`.
        """
        super().__init__(path, **options)
        self.shift = shift
        if transformer:
            self.overrides["transformer"] = ModelFiles(str(transformer), option="transformer")
            self.files = dataclasses.replace(self.files, without=tuple(self.overrides))

    def option_faults(self) -> list[str]:
        faults = []
        if self.channels_last and not self.convolutions:
            faults.append("channels_last does nothing for a transformer, which has no convolutions; leave it out")
        faults += checks.transformer_faults(self, self.original_mark)
        try:
            self.process()
        except ModelError as error:
            faults.append(str(error))
        return faults

    def _schedule(self) -> dict[str, Any]:
        return read_json(self.files.configuration("scheduler/scheduler_config.json"))

    def process(self) -> FlowMatching:
        from dreamlit.flow import from_scheduler

        return from_scheduler(self._schedule(), self.shift, self.patch)

    def scheduler(self) -> Any:
        if self.shift is None:
            return super().scheduler()
        kind = loading.component_class(self.files.index, "scheduler")
        schedule = self._schedule()
        name = "flow_shift" if "flow_shift" in schedule else "shift"
        return kind.from_config({**schedule, name: self.shift, "use_dynamic_shifting": False})

    def step_faults(self, steps: int) -> list[str]:
        if steps > 1 or not self._schedule().get("shift_terminal"):
            return []
        return [f"steps is {steps}: the sampler's last one is put at its shift_terminal, which takes at least 2"]

    def clip(self, number: int, prompts: list[str], **options: Any) -> Any:
        """Output of the CLIP text encoder `number` from 0. Where T5 reads the whole prompt, its cut is not told."""
        encoder, tokenizer = self.text_encoder_names[number]
        told = set(prompts) if self.t5_names in self.text_parts() else self._told
        ids, _ = text.tokens(self.part(tokenizer), prompts, told)
        return text.run(self.part(encoder), ids, **options)

    def t5(self, prompts: list[str]) -> Tensor:
        """[B, t5_tokens, D]; the padding is read like text, as in training of the models."""
        encoder, tokenizer = self.t5_names
        ids, _ = text.tokens(self.part(tokenizer), prompts, self._told, self.t5_tokens)
        return text.run(self.part(encoder), ids)[0]

    def masked_t5(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """[B, t5_tokens, D] where padding is not read, and the mask [B, t5_tokens]: 1 for text, 0 for padding."""
        encoder, tokenizer = self.t5_names
        ids, mask = text.tokens(self.part(tokenizer), prompts, self._told, self.t5_tokens)
        encoder = self.part(encoder)
        return text.run(encoder, ids, attention_mask=mask.to(encoder.device))[0], mask
