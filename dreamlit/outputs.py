"""What a module makes of its weights: adapter files, a pipeline, images of prompts."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from lightning.pytorch import LightningModule

from dreamlit.adapters import Adapter
from dreamlit.export import export, written_formats
from dreamlit.families import Family
from dreamlit.images import generate, save_image
from dreamlit.seeds import address


class Outputs(LightningModule):
    """The part of the LightningModule that reads the trained weights and never changes them."""

    family: Family
    adapter: Adapter
    denoiser: torch.nn.Module | None
    base_model_precision: str
    seed: int

    def export(self, folder: str | pathlib.Path, stem: str) -> list[pathlib.Path]:
        """Writes the adapter in each of its formats and returns the paths.

        `STEM.safetensors` is what ComfyUI and A1111 read, `STEM-diffusers.safetensors` what diffusers reads, and the
        folder `STEM` a full-rank denoiser.
        """
        suffixes = {"diffusers": "-diffusers.safetensors", "folder": ""}
        facts = {
            "base_model": self.family.files.path,
            "base_fingerprint": self.family.fingerprint("denoiser"),
            "base_model_precision": self.base_model_precision,
            "step": self.global_step,
            "seed": self.seed,
        }
        return [
            export(
                self.adapter,
                pathlib.Path(folder) / f"{stem}{suffixes.get(format, '.safetensors')}",
                family=self.family,
                format=format,
                metadata=facts,
            )
            for format in written_formats(self.adapter, self.family)
        ]

    def class_set(self, data: Any, precision: str) -> Any:
        """The class images that a run with this data draws for itself (`dreamlit.class_sets.ClassSet`)."""
        from dreamlit.class_sets import ClassSet

        return ClassSet(self.family, data, precision)

    def pipeline(self) -> Any:
        """A diffusers pipeline that samples with the denoiser as it is now, which it puts in evaluation mode."""
        self.eval()  # dropout
        return self.family.pipeline(denoiser=self.denoiser)

    def on_predict_start(self) -> None:
        self._predict_pipeline = self.pipeline()

    def predict_step(self, batch: tuple[int, str], batch_idx: int) -> pathlib.Path:
        """Makes the image of one prompt and returns the path of its file in `<default_root_dir>/predictions`."""
        index, prompt = batch
        seed = address(self.seed, "predict", index) % 2**31
        image = generate(self._predict_pipeline, prompt, seed, {})
        path = pathlib.Path(self.trainer.default_root_dir) / "predictions" / f"{index:03d}.png"
        return save_image(image, path, json.dumps({"prompt": prompt, "seed": seed}))
